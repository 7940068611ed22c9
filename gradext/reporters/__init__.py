"""How results look, one module per thing shown. Reads finished records, never live tensors."""
