"""Validation: engine logits against an implementation that is not ours."""
