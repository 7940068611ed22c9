"""`%load_ext gradext` in a real Jupyter kernel: reports below their cells, and cells by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent.parent

CELLS = {
    "load": "%load_ext gradext",
    "again": "%load_ext gradext",
    "saved": "import torch\nw = torch.ones(3, requires_grad=True)\ny = torch.sigmoid(w)",
    "written": "def shift():\n    y.add_(1)\nshift()",
    "fails": "y.sum().backward()",
    "last": "%gradext last",
    "guarded": "%%gradext --guard\n"
    "y = torch.sigmoid(w)\nz = y.exp()\ny.detach().numpy()[:] = 3\nz.sum().backward()",
    "not guarded": "y = torch.sigmoid(w)\nz = y.exp()\ny.detach().numpy()[:] = 3\n"
    "z.sum().backward()",
    "nonsense": "%gradext what",
    "nonsense for a cell": "%%gradext --what\n1 / 0",
    "shown": "h = torch.exp(w)",
    "shown and written": "h.add_(1)",
    "fails by what was shown": "h.sum().backward()",
    "unload": "%unload_ext gradext",
    "unrecorded": "y = torch.sigmoid(w)\ny += 1\ny.sum().backward()",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each cell has printed, on both streams."""
    folder = tmp_path_factory.mktemp("notebook")
    write_kernel_spec(str(folder / "kernels" / "python3"))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    )
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    client = NotebookClient(notebook, km=manager, timeout=300, allow_errors=True)
    base = {k: v for k, v in os.environ.items() if not k.startswith("GRADEXT")}
    path = os.pathsep.join(filter(None, (str(ROOT), base.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "IPYTHONDIR": str(folder), "COLUMNS": "100", "NO_COLOR": "1"}
    done: Any = client.execute(cwd=str(folder), env={**base, **own})
    return {
        name: "".join(out.text for out in cell.outputs if out.output_type == "stream")
        for name, cell in zip(CELLS, done.cells, strict=True)
    }


def test_the_report_stands_below_the_cell_that_failed(printed: dict[str, str]) -> None:
    assert printed["saved"] == printed["written"] == ""
    report = printed["fails"]
    assert "error[GX101]" in report
    assert "--> Cell In[4], line 2 in shift" in report
    assert "::: Cell In[3], line 3" in report
    assert "at Cell In[3], line 3: `y = torch.sigmoid(w).clone()`" in report
    assert "ipykernel_" not in report


def test_a_name_that_was_chosen_comes_before_the_number_of_an_output(
    printed: dict[str, str],
) -> None:
    report = printed["fails by what was shown"]
    assert "writes `h`" in report, report
    assert "_oh" not in report


def test_loading_twice_tells_once(printed: dict[str, str]) -> None:
    assert printed["again"] == "" or "already loaded" in printed["again"]
    assert printed["fails"].count("[GX101]") == 1


def test_last_shows_it_again(printed: dict[str, str]) -> None:
    assert "Cell In[4], line 2" in printed["last"]


def test_a_cell_with_a_guard(printed: dict[str, str]) -> None:
    assert "error[GX401]" in printed["guarded"]
    assert "line 3" in printed["guarded"]
    assert printed["not guarded"] == ""


def test_nonsense_gets_one_line(printed: dict[str, str]) -> None:
    for name in ("nonsense", "nonsense for a cell"):
        (line,) = printed[name].splitlines()
        assert "what: %gradext last" in line


def test_unloaded_it_says_nothing(printed: dict[str, str]) -> None:
    assert printed["unrecorded"] == ""
