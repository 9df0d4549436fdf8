"""Checkpoints for trying and testing: a real small model, and seeded ones of any shape."""
