"""The lesson: what requires_grad, detach, no_grad and inference_mode do, taught by running them.

One module per chapter (``c1_…`` to ``c6_…``), each a list of claims. This package owns the claims,
how they are run and how they are told; it reads tensors through gradext's ops and changes nothing.
"""

from gradext.lesson.core import ClaimResult, chapters, run

__all__ = ["ClaimResult", "chapters", "run"]
