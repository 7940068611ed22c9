"""One module per code, or per group of codes that share one cause."""
