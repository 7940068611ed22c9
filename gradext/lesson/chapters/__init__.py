"""The chapters of the lesson, each a list of claims that are run."""
