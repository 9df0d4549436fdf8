"""nemo-trt: a Mistral-NeMo checkpoint to a checked ONNX bundle and the engines made from it."""

__version__ = "0.1.0"
__all__ = ["__version__"]
