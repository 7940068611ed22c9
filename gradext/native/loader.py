"""Loads the compiled part, after torch; every way in which that can fail is one line."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import FrameType, ModuleType

from gradext.native import build, versions


def load() -> ModuleType:
    """Load `gradext._C`. Raises ImportError, one line, when no compiled part fits what is here.

    A leftover that does not fit is named in a warning when another one serves.
    """
    if (refusal := versions.free_threaded()) is not None:
        raise ImportError(refusal)
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            "gradext needs torch, which is not installed; run: pip install torch"
        ) from None
    fits, problems = build.choose(torch)
    if fits is None:
        raise ImportError(f"gradext: {problems[0]}")
    if problems:
        import warnings

        warnings.warn(
            f"gradext: passed over a leftover and loaded {fits.library}: {problems[0]}",
            stacklevel=_level(),
        )
    spec = importlib.util.spec_from_file_location("gradext._C", fits.library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        # The versions agree and it does not load: say what is known, with the loader's reason.
        text = str(error).replace("\n", " ")
        raise ImportError(
            f"gradext: cannot load {fits.library}, built for torch {fits.torch}, found torch "
            f"{torch.__version__} ({text}); run: {build.REINSTALL}"
        ) from None
    sys.modules["gradext._C"] = module
    failed = [claim for claim, holds in module.self_test() if not holds]
    if failed:
        raise ImportError(
            f"gradext: this torch ({torch.__version__}) does not behave as gradext's reads assume: "
            f"{'; '.join(failed)}. Please report this with the output of `gradext doctor`."
        )
    return module


def _level() -> int:
    """The stacklevel with which a warning names the line that imported gradext."""
    level, frame = 1, sys._getframe(1)
    package = f"{build.PACKAGE}{os.sep}"
    at: FrameType | None = frame
    while at is not None and at.f_code.co_filename.startswith((package, "<frozen importlib")):
        level += not at.f_code.co_filename.startswith("<frozen importlib")
        at = at.f_back
    return level
