"""The `cuda` marker: a skip without a GPU, and a failure where a GPU was promised."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

TESTS = """
import pytest

def test_each_device(device):
    assert device == "cpu"

@pytest.mark.cuda
def test_needs_a_gpu():
    raise RuntimeError("ran without a GPU")
"""


@pytest.mark.parametrize(
    ("required", "summary", "exit_code"),
    [("0", "1 passed, 2 skipped", 0), ("1", "1 passed, 2 errors", 1)],
)
def test_the_skip_is_a_failure_where_a_gpu_is_required(
    tmp_path: Path, required: str, summary: str, exit_code: int
) -> None:
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda: needs a GPU\n")
    (tmp_path / "test_gpu.py").write_text(TESTS)
    # No device is visible, so this shows the same on a machine that has one.
    hidden = {"CUDA_VISIBLE_DEVICES": "", "GRADEXT_REQUIRE_CUDA": required}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | hidden,
    )
    # Each by itself: a package that is installed beside may have warned of something as well.
    for count in summary.split(", "):
        assert count in done.stdout
    assert done.returncode == exit_code
    if required == "1":
        assert "GRADEXT_REQUIRE_CUDA=1 forbids skipping" in done.stdout
