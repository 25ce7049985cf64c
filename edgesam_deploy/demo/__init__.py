"""A page in the browser to try bundles on: ``session`` is what happens, without gradio; ``page`` is what is seen."""
