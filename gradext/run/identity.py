"""Who this process and this thread are among those of the program: rank, worker, names.

Asks torch.distributed and the DataLoader where the program has imported them, and a launcher's
variables. Imports neither, and runs no code of the program's: a thread's name is read, not asked
for.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from gradext.base import raw
from gradext.diagnosis.whom import Whom

# (rank, of how many, rank on its machine), as launchers tell it: torchrun and accelerate, Open MPI,
# MPICH and Intel MPI, Slurm.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("PMIX_RANK", "", ""),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


def of_process(is_child: bool) -> Whom:
    """This process, without its number; `is_child`: not the run's root."""
    rank, ranks, local = of_launcher()
    joined = _process_group()
    if joined is not None:
        if joined != (rank, ranks):
            local = local if rank == joined[0] else None
        rank, ranks = joined
    return Whom(None, _name_of_child() if is_child else None, rank, ranks, local, _worker())


def of_launcher() -> tuple[int | None, int | None, int | None]:
    """(rank, of how many, rank on its machine), as far as the environment tells."""
    for names in LAUNCHERS:
        rank, ranks, local = (_number(os.environ.get(name)) for name in names)
        if rank is not None:
            return rank, ranks, local
    return None, None, None


def thread() -> tuple[str | None, ...]:
    """The calling thread's name as a tuple of one, None for the main thread; () if it has none."""
    ident = threading.get_ident()
    if ident == threading.main_thread().ident:
        return (None,)
    # current_thread() would make an object for a thread that Python has not started.
    found: Any = getattr(threading, "_active", {}).get(ident)
    name = None if found is None else raw.attribute(found, "_name")
    return (name,) if type(name) is str else ()


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


def _process_group() -> tuple[int, int] | None:
    """(rank, of how many) in torch.distributed's default group; None where there is none."""
    distributed: Any = sys.modules.get("torch.distributed")
    try:
        if distributed is None or not distributed.is_available():
            return None
        if not distributed.is_initialized():
            return None
        return int(distributed.get_rank()), int(distributed.get_world_size())
    except Exception:
        return None


def _worker() -> int | None:
    module = sys.modules.get("torch.utils.data._utils.worker")
    number = getattr(getattr(module, "_worker_info", None), "id", None)
    return number if type(number) is int else None


def _name_of_child() -> str | None:
    module: Any = sys.modules.get("multiprocessing.process")
    if module is None or module.parent_process() is None:
        return None
    name = raw.attribute(module.current_process(), "_name")
    return name if type(name) is str else None
