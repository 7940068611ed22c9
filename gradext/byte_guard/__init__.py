"""gradext.guard: writes found by comparing the bytes of saved tensors."""
