"""The text of the program and the frames that run it: files, lines, statements, call sites."""
