"""The autograd state of one tensor, or of every tensor in an object."""
