"""What a diagnosis is: its codes, sites and pages. Imports no torch."""
