"""A program that is recorded from its start to its end: `gradext run`, or by the environment."""
