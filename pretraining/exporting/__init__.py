"""A model as an ONNX file, and its comparison with PyTorch; for ``scripts/export.py``."""
