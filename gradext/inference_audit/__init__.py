"""gradext.audit_inference: whether a call can run under inference_mode.

`isolation` finds a place to run in, `experiments` runs, `result_trees` compares results, `checks`
judges, `report` has the door and the record of what was found.
"""
