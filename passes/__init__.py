"""Changes of a graph in memory, on onnx-ir: one file, one class, one test each."""
