"""What every test may rely on: global torch state is put back, and CUDA tests cannot skip unseen.

Owns the `device` fixture and the `cuda` marker's rule. Imports nothing of gradext, so that the
tests of a broken installation can run.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator

import numpy
import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn; the "cuda" turn carries the `cuda` marker."""
    name: str = request.param
    return name


@pytest.fixture
def quick_op_db(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what op_db does at each sample, and what takes ten times as long as the op itself.

    It looks for a unittest.TestCase on the stack, which is deep under pytest. And it seeds devices
    that are not there, for which torch keeps the text of the stack.
    """
    from torch.testing._internal import common_utils
    from torch.testing._internal.opinfo import core

    for module in (common_utils, core):
        monkeypatch.setattr(module, "extract_test_fn", lambda: None)
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return
    # A GPU run that silently tests nothing is worse than none: there the skip is a failure.
    if os.environ.get("GRADEXT_REQUIRE_CUDA") == "1":
        pytest.fail("no CUDA device, and GRADEXT_REQUIRE_CUDA=1 forbids skipping", pytrace=False)
    pytest.skip("no CUDA device")


@pytest.fixture(autouse=True, scope="module")
def _leave_the_past_alone() -> None:
    """Diagnoses look at all objects there are, and audits fork: a worker grows with each file.

    What earlier files left is put where no collection and no search goes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _restore_global_state() -> Iterator[None]:
    """A test may seed, switch grad mode or the default dtype; the next one must not see it."""
    rng = torch.get_rng_state()
    python_rng = random.getstate()
    numpy_rng = numpy.random.get_state()
    # The same values in whatever order the tests run, and on whichever worker.
    torch.default_generator.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    # Tests run far more diagnoses than a program: what one had no time for is not the next one's.
    time_share = sys.modules.get("gradext.recording.time_share")
    if time_share is not None:
        time_share._looked["skipped"] = 0.0
    grad_mode = torch.is_grad_enabled()
    dtype = torch.get_default_dtype()
    yield
    torch.set_rng_state(rng)
    random.setstate(python_rng)
    numpy.random.set_state(numpy_rng)
    torch.set_grad_enabled(grad_mode)
    torch.set_default_dtype(dtype)
