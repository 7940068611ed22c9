"""gradext.compare_modes: what a call costs under each grad mode."""
