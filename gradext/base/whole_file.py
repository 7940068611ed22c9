"""A file that is written whole or not at all, so that a kill leaves a file to read."""

from __future__ import annotations

import contextlib
import os


def replace(path: str, data: bytes, *, mode: int | None = None) -> None:
    """Put `data` in the place of what the file holds.

    Args:
        path: of the file itself: a link would be replaced by a file.
        data: all of it.
        mode: permission bits that the file is to have, in which case it is on the disk when this
            returns; None for those of any new file.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            if mode is not None:
                file.flush()
                os.fsync(file.fileno())
        if mode is not None:
            os.chmod(draft, mode)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
