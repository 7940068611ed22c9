"""Objects of the program, read without running its code: what holds a tensor, under which name."""
