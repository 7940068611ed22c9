"""Helpers that know nothing of tensors or autograd; most need the standard library only."""
