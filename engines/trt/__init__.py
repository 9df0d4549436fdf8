"""TensorRT: a bundle's graph lowered, compiled for a named GPU, checked, and run."""
