"""The bytes of tensors as 128-bit fingerprints, and replicas compared by them."""
