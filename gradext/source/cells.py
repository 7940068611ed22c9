"""Cells of a notebook, or of IPython, by the name that their traceback has: "Cell In[3]".

Asks the shell that runs in this process; elsewhere a cell's file is a file like any other.
"""

from __future__ import annotations

import sys
from typing import Any


def name(file: str) -> str | None:
    """ "Cell In[3]" for the file that IPython compiled that cell as; None for any other."""
    if "ipython" not in file and "ipykernel" not in file:
        return None  # as IPython and ipykernel name them; asked once for each line of a report
    shell_class: Any = getattr(sys.modules.get("IPython.core.getipython"), "get_ipython", None)
    try:
        shell = shell_class() if shell_class is not None else None
        # None unless the file is a cell that this shell has numbered.
        words = shell.compile.format_code_name(file) if shell is not None else None
    except Exception:
        return None
    return f"{words[0]} {words[1]}" if words else None
