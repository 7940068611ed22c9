"""`gradext fix`: patches for a program that failed, each tried on the program itself.

`strategies` propose, `trial` runs the program with a patch in a child process, `proof` compares
what it computes with what the forward pass means, `search` puts them in order.
"""
