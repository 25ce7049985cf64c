"""TensorRT: strongly typed ONNX, the script that builds its engines where they will run, and a runner for those."""
