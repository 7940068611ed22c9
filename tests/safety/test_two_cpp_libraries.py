"""Messages with numbers in a process that holds a second C++ library.

A library that links libstdc++ statically and shows its symbols takes the place of the first one
for what is loaded after it (RTLD_GLOBAL), or shares the ids of its locale's parts with it (loaded
before it). Strings in a C++ stream still work then; numbers are lost, or the process dies, as it
depends on the two versions. gradext's messages put no number through a stream.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradext

OTHER = """
#include <iostream>  // its initialisation makes the second locale
#include <sstream>
#include <string>
extern "C" int other(int n) {
  std::ostringstream s;
  s << n << 1.5;
  return static_cast<int>(s.str().size());
}
"""

# In a stream of the kind that a message is made with: whether the second library has any effect.
PROBE = """
#include <sstream>
#include <string>
extern "C" const char* number(long n) {
  static std::string text;
  std::ostringstream s;
  s << "number " << n;
  text = s.str();
  return text.c_str();
}
"""

PROGRAM = """
import ctypes, sys
order, other = sys.argv[1:]
if order == "before torch":
    ctypes.CDLL(other)
import torch
if order == "after torch":
    ctypes.CDLL(other, mode=ctypes.RTLD_GLOBAL)
from gradext import ops
import gradext
def message(call):
    try:
        call()
    except Exception as error:
        print(str(error).splitlines()[0])
x = torch.ones(3, 4)
message(lambda: ops.window(x, 5, 0, 1))
message(lambda: ops.window(x, 0, 7, 1))
message(lambda: ops.window(x, 0, 0, -2))
message(lambda: ops.window(x, 0, 2, 2))
with gradext.record() as recording:
    x.add_(1)
print(len(recording.mutations(x)), gradext.inspect(x).shape)
"""

EXPECTED = """\
gradext::window: dim is 5, expected -2 to 1
gradext::window: start is 7, expected -3 to 3 in a dimension of size 3
gradext::window: length is -2, expected a number not below 0
gradext::window: start 2 and length 2 end at 4, past the dimension's size of 3
"""


def compiled(folder: Path, name: str, text: str, *options: str) -> Path:
    source, library = folder / f"{name}.cpp", folder / f"lib{name}.so"
    source.write_text(text)
    command = ["g++", "-O2", "-fPIC", "-shared", str(source), "-o", str(library), *options]
    subprocess.run(command, check=True)
    return library


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(program)
    root = str(Path(gradext.__file__).parents[1])
    code = f"import sys, runpy; sys.path.insert(0, {root!r}); del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("order", ["none", "after torch", "before torch"])
def test_numbers_in_messages(order: str, tmp_path: Path) -> None:
    other = compiled(tmp_path, "other", OTHER, "-static-libstdc++")
    if order != "none" and run(tmp_path, BARE, order, str(other)).returncode < 0:
        pytest.skip("torch alone dies there: its own messages have numbers, too")
    done = run(tmp_path, PROGRAM, order, str(other))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(EXPECTED), done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 ")


BARE = """
import ctypes, sys
order, other = sys.argv[1:]
if order == "before torch":
    ctypes.CDLL(other)
import torch
if order == "after torch":
    ctypes.CDLL(other, mode=ctypes.RTLD_GLOBAL)
try:
    torch.ones(3, 4).select(5, 0)
except IndexError:
    pass
"""

LOST = """
import ctypes, sys
order, other, probe = sys.argv[1:]
if order == "before torch":
    ctypes.CDLL(other)
import torch
if order == "after torch":
    ctypes.CDLL(other, mode=ctypes.RTLD_GLOBAL)
number = ctypes.CDLL(probe).number
number.restype = ctypes.c_char_p
print(number(5).decode())
"""

# torch's builds for CUDA load a library that shows everybody the first libstdc++, whose place
# nothing takes after that.
LOSING = ["before torch"] if torch.version.cuda else ["before torch", "after torch"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("order", LOSING)
def test_a_number_in_a_stream_is_lost_there(order: str, tmp_path: Path) -> None:
    """The reason for the rule; where this passes no longer, it can be given up."""
    other = compiled(tmp_path, "other", OTHER, "-static-libstdc++")
    probe = compiled(tmp_path, "probe", PROBE)
    done = run(tmp_path, LOST, order, str(other), str(probe))
    assert done.returncode != 0 or done.stdout == "number \n", done.stdout
