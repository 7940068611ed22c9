"""`gradext fix` on real programs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from forks import fix


def plain(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """As a user starts it; forks.fix is quicker."""
    return subprocess.run(
        [sys.executable, "-m", "gradext", "fix", *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )


def write(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return path


def candidates(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["candidates"]
    return found


# Without an optimizer: its first step takes torch as long as its import, in each of the runs.
STALE = """
import torch
from torch import nn

net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid())
for _ in range(3):
    y = net(torch.rand(2, 3))
    y *= 2  # a comment that stays
    net.zero_grad()
    y.sum().backward()
    with torch.no_grad():
        for weight in net.parameters():
            weight -= 0.1 * weight.grad
"""


def test_a_stale_saved_tensor_is_mended_and_proved(tmp_path: Path) -> None:
    path = write(tmp_path, STALE)
    before = path.read_bytes()
    done = plain(tmp_path, "--json", "out.json", "train.py")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before
    assert done.stdout.startswith(
        "verified: same loss, 6 of 6 gradients bit-equal, 2 more passes ran"
    )
    assert "-    y *= 2  # a comment that stays" in done.stdout
    assert "+    y = y * 2  # a comment that stays" in done.stdout
    (best, *_) = candidates(tmp_path / "out.json")
    assert best["level"] == "verified"
    assert best["files"] == {str(path.resolve()): before.decode().replace("y *= 2", "y = y * 2")}
    assert sorted(os.listdir(tmp_path)) == ["out.json", "train.py"]


def test_apply_keeps_the_mode_and_what_is_printed_can_be_typed_in_a_folder_with_a_space(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "else where" / "it's"
    folder.mkdir(parents=True)
    path = write(folder, STALE)
    before = path.read_bytes()
    path.chmod(0o750)
    done = fix(folder, "--apply", "--tries", "1", "train.py")
    assert done.returncode == 0, done.stderr
    mended = path.read_bytes()
    assert mended == before.replace(b"y *= 2", b"y = y * 2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    undo = done.stderr.split("to undo: ")[1].strip()
    subprocess.run(undo, shell=True, check=True, cwd=tmp_path)
    assert path.read_bytes() == before
    diff = done.stdout[done.stdout.index("--- a/") :].split("\n\nalso tried")[0] + "\n"
    assert diff.startswith("--- a/train.py\n+++ b/train.py\n")
    (tmp_path / "mend.diff").write_text(diff)
    applied = ["git", "apply", "--unsafe-paths", str(tmp_path / "mend.diff")]
    subprocess.run(applied, check=True, cwd=folder, env={**os.environ, "GIT_DIR": "/nowhere"})
    assert path.read_bytes() == mended


def test_a_fault_in_an_imported_module(tmp_path: Path) -> None:
    write(tmp_path, "def half(y):\n    y.div_(2)\n    return y\n", "helper.py")
    write(
        tmp_path,
        """
        import helper, torch
        w = torch.ones(3, requires_grad=True)
        helper.half(w.exp()).sum().backward()
        """,
    )
    subprocess.run([sys.executable, "-c", "import helper"], cwd=tmp_path, check=True)  # bytecode
    done = fix(tmp_path, "--json", "out.json", "--tries", "1", "train.py")
    assert done.returncode == 0, done.stderr
    (path,) = candidates(tmp_path / "out.json")[0]["files"]
    assert path.endswith("helper.py")
    assert "+    y = y.div(2)" in done.stdout


def test_moving_a_step_changes_the_meaning_and_says_so(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        import torch
        from torch import nn

        disc, gen = nn.Linear(2, 1), nn.Linear(2, 2)
        opt = torch.optim.SGD(disc.parameters(), 0.1)
        for _ in range(2):
            fake = gen(torch.ones(4, 2))
            first = disc(fake).pow(2).mean()
            second = (disc(fake) - 1).pow(2).mean()
            opt.zero_grad()
            first.backward(retain_graph=True)
            opt.step()
            second.backward()
        """,
    )
    before = path.read_bytes()
    done = fix(tmp_path, "--apply", "--json", "out.json", "--tries", "2", "train.py")
    assert done.returncode == 1, done.stdout
    assert path.read_bytes() == before  # it is not verified
    assert "nothing was written" in done.stderr
    best = candidates(tmp_path / "out.json")[0]
    assert best["level"] == "changes-meaning"
    done = fix(tmp_path, "--apply", "--changes-meaning", "--tries", "1", "train.py")
    assert path.read_bytes() != before


def test_an_inference_tensor(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import torch
        from torch import nn

        net = nn.Linear(3, 1)
        with torch.inference_mode():
            table = torch.rand(4, 3)
        net(table).sum().backward()
        """,
    )
    done = fix(tmp_path, "train.py")
    assert done.returncode == 0, done.stderr
    assert "+with torch.no_grad():" in done.stdout


def test_two_faults_one_behind_the_other_are_one_patch(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import torch

        w = torch.ones(3, requires_grad=True)
        a = w.exp()
        a += 1
        b = a.sigmoid()
        b *= 2
        b.sum().backward()
        """,
    )
    done = fix(tmp_path, "--json", "out.json", "train.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; then " in candidates(tmp_path / "out.json")[0]["title"]
    assert "+a = a + 1" in done.stdout
    assert "+b = b * 2" in done.stdout


def test_code_of_dash_c_is_shown_and_not_written(tmp_path: Path) -> None:
    lines = (
        "import torch; y = torch.ones(3, requires_grad=True).exp()",
        "y += 1",
        "y.sum().backward()",
    )
    code = "\n".join(lines)
    done = fix(tmp_path, "--apply", "--tries", "1", "-c", code)
    assert "+y = y + 1" in done.stdout
    assert "no file that could be changed" in done.stderr
    assert done.returncode == 2


def test_what_it_reads_from_stdin_is_there_each_time(tmp_path: Path) -> None:
    text = "import sys\nassert sys.stdin.read() == 'given'\n" + STALE
    (tmp_path / "train.py").write_text(text)
    assert plain(tmp_path, "--tries", "1", "train.py", stdin="given").returncode == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\ndef (:\n", "SyntaxError"),
        ("import torch\nraise ValueError('mine')\n", "ValueError: mine"),
        ("print(1)\n", "nothing to mend"),
        ("import torch\ntorch.ones(1, requires_grad=True).exp().backward()\n", "nothing to mend"),
    ],
)
def test_there_is_nothing_to_mend(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, text)
    done = fix(tmp_path, "train.py")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("gradext fix: ")
    assert said in last
    assert done.stdout == ""


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    write(tmp_path, "import time\nimport torch\ntime.sleep(600)\n")
    done = plain(tmp_path, "--time", "6", "train.py")
    assert done.returncode == 2
    assert "did not end in time" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-",),
        ("--tries", "0", "x.py"),
        ("--tries", "many", "x.py"),
        ("--json", "no/such/f", "x.py"),
    ],
)
def test_bad_words_are_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = plain(tmp_path, *words)
    assert done.returncode == 2
    assert "gradext fix: error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cut_is_proved_by_differences_and_a_stop_is_left_to_its_author(tmp_path: Path) -> None:
    text = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for _ in range(2):
        net.zero_grad()
        out = net(torch.rand(5, 3)).square()
        loss = torch.tensor(out.mean().item(), requires_grad=True)
        loss.backward()
    """
    write(tmp_path, text)
    done = fix(tmp_path, "train.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified: same loss, its slope is what differences of it in")
    assert "+    loss = (out.mean())" in done.stdout
    stop = "out.mean().item(), requires_grad=True"
    write(tmp_path, text.replace(f"torch.tensor({stop})", "out.detach().mean()"))
    done = fix(tmp_path, "--tries", "2", "train.py")
    assert done.returncode == 1, done.stderr
    assert "runs, not proved: what was cut off has gradients; whether the cut was meant" in (
        done.stdout
    )


def test_a_write_through_data_is_never_verified(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import torch

        w = torch.randn(4, 3, requires_grad=True)
        h = torch.sigmoid(w)
        h.data.clamp_(-0.5, 0.5)
        h.pow(2).sum().backward()
        """,
    )
    done = fix(tmp_path, "--json", "out.json", "--tries", "4", "train.py")
    assert done.returncode == 1, done.stderr
    found = candidates(tmp_path / "out.json")
    texts = [text for one in found[:2] for text in one["files"].values()]
    assert any("h = h.clamp(-0.5, 0.5)" in text for text in texts), texts
    assert {one["level"] for one in found} <= {"changes-meaning", "unproved", "fails"}


def test_a_fork_and_a_syntax_error_are_one_line(tmp_path: Path) -> None:
    write(
        tmp_path, STALE.replace("for _", "import os\nif not os.fork():\n    os._exit(0)\nfor _", 1)
    )
    done = plain(tmp_path, "--tries", "1", "train.py")
    assert done.stdout.startswith("verified"), done.stderr
    write(tmp_path, "import torch\nx = (\n", "broken.py")
    done = plain(tmp_path, "broken.py")
    assert done.returncode == 2
    assert "SyntaxError" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_dry_run_runs_no_patch(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("open('runs', 'a').write('x')\n" + STALE)
    done = fix(tmp_path, "--dry-run", "--json", "out.json", "train.py")
    assert done.returncode == 1
    assert (tmp_path / "runs").read_text() == "x"
    assert "+    y = y * 2  # a comment that stays" in done.stdout
    assert "verified" not in done.stdout
    found = candidates(tmp_path / "out.json")
    assert len(found) > 1
    assert {one["level"] for one in found} == {"untried"}
    done = fix(tmp_path, "--dry-run", "--apply", "train.py")
    assert done.returncode == 2
    assert "gradext fix: error: --dry-run tries nothing" in done.stderr
