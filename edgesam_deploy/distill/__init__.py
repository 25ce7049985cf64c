"""The training that makes these models: data, teacher embeddings, losses, engine, evaluation, as recipes."""
