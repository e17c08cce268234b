"""Export a model to ONNX and ``torch.export``; the vocabulary stays an input."""
