"""What audit_inference() is made of, imported when it is called.

`isolation` finds a place to run in, `experiments` runs, `trees` compares results, `checks` judges.
The report is gradext.inference's.
"""
