"""gradext inside other tools; each module is imported where its tool asks for it."""
