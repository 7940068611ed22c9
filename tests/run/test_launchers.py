"""Commands that an installer wrote are no part of the program: no call chain ends in one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from gradext.base.package import is_launcher, is_user_file

PIP = """#!/somewhere/bin/python
# -*- coding: utf-8 -*-
import re
import sys
from train import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
UV = """#!/somewhere/bin/python
# -*- coding: utf-8 -*-
import sys
from train import main
if __name__ == "__main__":
    if sys.argv[0].endswith("-script.pyw"):
        sys.argv[0] = sys.argv[0][:-11]
    elif sys.argv[0].endswith(".exe"):
        sys.argv[0] = sys.argv[0][:-4]
    sys.exit(main())
"""
CONDA = """#!/somewhere/bin/python
\"\"\"Made by an installer.\"\"\"
import sys

from train import main

if __name__ == '__main__':
    raise SystemExit(main())
"""
BARE = (
    "#!/usr/bin/env python3\n\nfrom train import main\n\nif __name__ == '__main__':\n    main()\n"
)
FLAT = "#!/usr/bin/env python3\nimport sys\nfrom train import main\nsys.exit(main())\n"
LAUNCHERS = {"pip": PIP, "uv": UV, "conda": CONDA, "bare": BARE, "flat": FLAT}

TRAINS = "#!/usr/bin/env python3\nimport sys\nimport torch\nx = torch.ones(3)\nsys.exit(0)\n"
CALLS = "#!/usr/bin/env python3\nfrom train import main\nmain(epochs=3)\n"
NO_IMPORT = "#!/usr/bin/env python3\nraise SystemExit(0)\n"
BROKEN = "#!/usr/bin/env python3\nfrom train import\n"
BINARY = b"\x7fELF\0"
OTHERS = {"trains": TRAINS, "calls": CALLS, "no import": NO_IMPORT, "broken": BROKEN}
OTHERS |= {"binary": BINARY, "not a program": PIP.split("\n", 1)[1], "long": PIP + "#" * 5000}

TRAIN = """
import torch

def main():
    y = torch.ones(3, requires_grad=True).exp()
    y.add_(1)
    y.sum().backward()
"""


@pytest.fixture
def command(tmp_path):
    """command(text): a file of that text in a folder of commands."""

    def command(text: str | bytes, folder: str = "bin") -> Path:
        path = tmp_path / folder / "run-it"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return command


@pytest.mark.parametrize("folder", ["bin", "Scripts"])
@pytest.mark.parametrize("text", LAUNCHERS.values(), ids=LAUNCHERS)
def test_a_launcher(command, text, folder):
    path = str(command(text, folder))
    assert is_launcher(path)
    assert not is_user_file(path)


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_what_only_lies_there_is_the_users(command, text):
    path = str(command(text))
    assert not is_launcher(path)
    assert is_user_file(path)


@pytest.mark.parametrize("folder", ["scripts", "project"])
def test_the_same_text_elsewhere_is_the_users(command, folder):
    assert is_user_file(str(command(PIP, folder)))


def test_a_file_that_is_not_there_is_the_users(tmp_path):
    assert is_user_file(str(tmp_path / "bin" / "gone"))


def test_a_pipe_is_not_opened(tmp_path):
    (tmp_path / "bin").mkdir()
    os.mkfifo(tmp_path / "bin" / "run-it")
    assert not is_launcher(str(tmp_path / "bin" / "run-it"))


def chain(report):
    (diagnosis,) = report["diagnoses"]
    (site,) = diagnosis["culprits"]
    return [frame["function"] for frame in (site, *site.get("callers", ()))]


def test_the_console_script_ends_no_chain(plain, write, tmp_path):
    script = Path(sys.executable).with_name("gradext")
    write(TRAIN + "\nmain()\n")
    report = tmp_path / "report.json"
    done = plain(str(script), "run", "--json", str(report), "train.py")
    assert done.code == 1
    assert b"bin/gradext" not in done.err.split(b"error[GX101]")[1]
    assert chain(json.loads(report.read_text())) == ["main", "<module>"]


@pytest.mark.parametrize("text", LAUNCHERS.values(), ids=LAUNCHERS)
def test_a_program_that_a_launcher_starts(recorded, write, text):
    write(TRAIN, "bin/train.py")
    write(text, "bin/run-it")
    done, report = recorded("bin/run-it")
    assert done.code == 1
    assert chain(report) == ["main"]
