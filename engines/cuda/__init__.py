"""ONNX Runtime's CUDA provider: which kernels it has, the graph made fit for it, the session."""
