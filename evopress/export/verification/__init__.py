"""Compares a written checkpoint with the searched model: file sizes, tensors and logits."""
