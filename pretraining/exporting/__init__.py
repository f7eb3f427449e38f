"""A model as an ONNX file, and its comparison with PyTorch; a model with fewer tokens; for ``scripts/``."""
