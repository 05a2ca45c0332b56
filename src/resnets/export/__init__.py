"""Ship a model: ONNX, int8, the model card, and the classifier that opens them."""
