"""Context binaries for the HTP of Snapdragon chips, made by Qualcomm's compiler as onnxruntime-qnn brings it."""
