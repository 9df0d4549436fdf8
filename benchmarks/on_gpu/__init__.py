"""What is measured on a GPU: one file a question, run by benchmarks/gpu.py."""
