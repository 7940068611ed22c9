"""What went wrong, code by code: from an error and a recording to diagnoses."""
