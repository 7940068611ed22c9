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
    "last again": "%gradext last",
    "fix": "%gradext fix",
    "a diagnosis": "import gradext\ngradext.explain()[0]",
    "diagnoses": "gradext.explain()",
    "checked": "g = torch.exp(w)\ng.add_(1)\ngradext.check_backward(g.sum())",
    "a state": "gradext.inspect(w)",
    "states": "gradext.inspect_tree([w, h])",
    "fingerprints": "before = gradext.fingerprint([w, torch.ones(2)])\nbefore",
    "changes": "gradext.compare_fingerprints(before, gradext.fingerprint([w, torch.zeros(2)]))",
    "a recording": "with gradext.record() as recording:\n    k = torch.zeros(3).add_(1)\nrecording",
    "mutations": "recording.mutations(k)",
    "modes": "gradext.compare_modes(lambda: w * 2, seconds=0.05)",
    "audit": "gradext.audit_inference(torch.nn.Linear(3, 3), torch.ones(1, 3))",
    "unload": "%unload_ext gradext",
    "unrecorded": "y = torch.sigmoid(w)\ny += 1\ny.sum().backward()",
}


def execute(folder: Path, sources: dict[str, str], **more: str) -> dict[str, list[Any]]:
    """The outputs of each cell, in a kernel of its own."""
    write_kernel_spec(str(folder / "kernels" / "python3"))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources.values()]
    )
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    client = NotebookClient(notebook, km=manager, timeout=300, allow_errors=True)
    base = {k: v for k, v in os.environ.items() if not k.startswith("GRADEXT")}
    # What an installed gradext has in a .pth file.
    line = (ROOT / "build_tools" / "gradext-autostart.pth").read_text()
    (folder / "sitecustomize.py").write_text(f"exec({line!r})\n")
    path = os.pathsep.join(filter(None, (str(folder), str(ROOT), base.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "IPYTHONDIR": str(folder), "COLUMNS": "100", "NO_COLOR": "1"}
    # A kernel manager that the client has not made is left running, unless asked.
    done: Any = client.execute(cwd=str(folder), env={**base, **own, **more}, cleanup_kc=True)
    return {name: cell.outputs for name, cell in zip(sources, done.cells, strict=True)}


def stream(outputs: list[Any]) -> str:
    return "".join(out.text for out in outputs if out.output_type == "stream")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return execute(tmp_path_factory.mktemp("notebook"), CELLS)


@pytest.fixture(scope="module")
def printed(outputs: dict[str, list[Any]]) -> dict[str, str]:
    """What each cell has printed, on both streams."""
    return {name: stream(found) for name, found in outputs.items()}


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


def test_last_is_the_last_and_not_the_worst(printed: dict[str, str]) -> None:
    assert "writes `h`" in printed["last again"]
    assert printed["last again"].count("[GX101]") == 1


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


SHOWN = {
    "a diagnosis": "stale-saved-tensor",
    "diagnoses": "stale-saved-tensor",
    "checked": "stale-saved-tensor",
    "a state": "requires_grad",
    "states": "[1]",
    "fingerprints": "[1]",
    "changes": "bytes",
    "a recording": "writes",
    "mutations": "add_",
    "modes": "no_grad",
    "audit": "verdict",
}


@pytest.mark.parametrize("name", SHOWN)
def test_results_show_themselves(outputs: dict[str, list[Any]], name: str) -> None:
    found = [out.data for out in outputs[name] if out.output_type == "execute_result"]
    assert found, outputs[name]
    page = found[0]["text/html"]
    assert SHOWN[name] in page, page
    assert "\x1b" not in page
    if name == "a diagnosis":
        assert found[0]["text/plain"].startswith("error[GX101] ")
    # In both themes: no colour of the background, nor black or white text.
    assert "background" not in page
    assert "color:#000" not in page
    assert "color:#fff" not in page


def test_an_edit_of_a_cell(outputs: dict[str, list[Any]]) -> None:
    said = stream(outputs["fix"])
    assert "(not tried):" in said, said
    assert "-h.add_(1)\n+h = h.add(1)\n" in said, said
    assert "ipykernel" not in said
    assert ".py:" not in said


def test_a_kernel_that_the_environment_records(tmp_path: Path) -> None:
    """`GRADEXT_RECORD=guard jupyter lab`: the cells have their reports, once."""
    cells = {
        "torch": "import torch\nw = torch.ones(3, requires_grad=True)",
        "fails": "y = torch.sigmoid(w)\ny.add_(1)\ny.sum().backward()",
        "refused": "w.add_(1)",
        "silent": CELLS["not guarded"],
        "fine": "w.sum().backward()",
    }
    found = {
        name: stream(out) for name, out in execute(tmp_path, cells, GRADEXT_RECORD="guard").items()
    }
    assert found["fails"].count("error[GX101]") == 1, found
    assert "Cell In[2], line 2" in found["fails"]
    assert found["refused"].count("error[GX102]") == 1
    assert found["silent"].count("error[GX401]") == 1
    assert found["torch"] == found["fine"] == ""


def test_unloaded_it_says_nothing(printed: dict[str, str]) -> None:
    assert printed["unrecorded"] == ""
