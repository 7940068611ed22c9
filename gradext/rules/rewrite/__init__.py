"""What to type instead: changed source text for a help line."""
