"""Arguments to call an op with: from its schema, from torch's op_db, or written by hand."""
