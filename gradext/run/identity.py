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
    """The Whom of this process, without its number. `is_child`: it is not the run's root."""
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
        rank, ranks, local = (number(os.environ.get(name)) for name in names)
        if rank is not None:
            return rank, ranks, local
    return None, None, None


def node() -> int | None:
    """The machine's number in a launch of several machines; None in one of one machine."""
    number_of = {name: number(os.environ.get(name)) for name in _NODES}
    ranks, here = number_of["WORLD_SIZE"], number_of["LOCAL_WORLD_SIZE"]
    if ranks is not None and here is not None:
        return number_of["GROUP_RANK"] if here < ranks else None
    machines = number_of["SLURM_NNODES"]
    return number_of["SLURM_NODEID"] if machines is not None and machines > 1 else None


_NODES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "SLURM_NNODES", "SLURM_NODEID")


def launcher_process() -> str:
    """The process that started the ranks of this machine, and when it began itself.

    It is the nearest of those above that no launcher has given a rank; a shell may lie between.
    """
    pid = os.getppid()
    names = tuple(rank.encode() + b"=" for rank, _, _ in LAUNCHERS)
    began = ""
    for _ in range(16):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            began = fields[19].decode()
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except (OSError, IndexError):
            break  # no /proc, or another user's
        if not any(variable.startswith(names) for variable in variables) or int(fields[1]) <= 1:
            break
        pid, began = int(fields[1]), ""
    return f"{pid} {began}"


def thread() -> tuple[str | None, ...]:
    """The calling thread's name as a tuple of one, None for the main thread; () if it has none."""
    ident = threading.get_ident()
    if ident == threading.main_thread().ident:
        return (None,)
    # current_thread() would make an object for a thread that Python has not started.
    found: Any = getattr(threading, "_active", {}).get(ident)
    name = None if found is None else raw.attribute(found, "_name")
    return (name,) if type(name) is str else ()


def number(text: str | None) -> int | None:
    """The number that a variable holds; None where it holds none."""
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
