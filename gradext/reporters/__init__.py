"""How results look: one module per thing that is shown. Reads finished records, never live tensors."""
