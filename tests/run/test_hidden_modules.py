"""A file beside the program that hides a module of the standard library hides it here too.

The programs lie in a folder below: those of the current one, `python -m gradext` gives to gradext.
"""

from __future__ import annotations

from typing import Any

import pytest

PRINTS = "print('mine', __name__)\nvalue = 1\n"


@pytest.mark.parametrize("name", ["random", "json", "argparse", "difflib", "colorsys", "abc"])
def test_the_program_gets_what_python_gives(alike: Any, write: Any, name: str) -> None:
    write(PRINTS, f"d/{name}.py")
    write(f"import {name}\nprint({name}.__file__, hasattr({name}, 'value'))\n", "d/train.py")
    alike("d/train.py")


def test_a_package(alike: Any, write: Any) -> None:
    write(PRINTS, "d/json/__init__.py")
    write("import json\nprint(json.value)\nimport json.decoder\n", "d/train.py")
    ended, _ = alike("d/train.py")
    assert b"No module named 'json.decoder'" in ended.err


def test_a_folder_of_data_hides_nothing(alike: Any, write: Any) -> None:
    write("1", "d/json/data.txt")
    write("import json\nprint(json.dumps(1))\n", "d/train.py")
    alike("d/train.py")


def test_torch_fails_as_it_does_alone(plain: Any, recorded: Any, write: Any) -> None:
    write(PRINTS, "d/random.py")
    write("import torch\nprint(torch.ones(1))\n", "d/train.py")
    expected = plain("d/train.py", forked=False)
    found, _ = recorded("d/train.py", forked=False)
    assert expected.code == found.code
    assert found.out == expected.out
    # From 3.13 on the interpreter may add "(consider renaming ...)", for a file in the folder that
    # it was started for: which is not the program's under `gradext run`.
    error, _, _ = expected.err.splitlines()[-1].partition(b" (consider renaming")
    assert found.err.splitlines()[-1].startswith(error)
