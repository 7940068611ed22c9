"""Sentences and sites that several rules share."""
