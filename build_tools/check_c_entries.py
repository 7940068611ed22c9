"""Finds functions that CPython or torch calls and that do gradext's work unprotected.

An entry is a function of csrc/ that stands in a method table, a getset, a capsule, as a trace or
profile function, among ops' observers or the hooks of a node. Outside of aside(), safely() and
under_gil() (csrc/base/aside.h) it may call only what is named here: what it
stands for, and what neither runs Python nor throws. `python build_tools/check_c_entries.py`
prints each other call and ends with 1; a commit runs it.

The bodies of boxed kernels that stand before the kernels of every op are looked at likewise. Torch
catches what leaves a kernel and gives it to the program as the op's error: so it may be the op's
alone, and work of gradext's stands in safely(). Kernels without boxing (fast_kernels.cpp) are
templates whose calls have no such names; they do that work in the same functions. Neither runs
Python: all that they need it for is a reference to a code object (stack_table.cpp).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PROTECTED = ("aside", "safely", "guarded", "guarded_op", "under_gil", "beside")

# Where a function is given to CPython or torch; the first group is its name.
TABLES = (
    r"reinterpret_cast<void \(\*\)\(\)>\(\s*&([\w:<>]+)\)\)",  # a PyMethodDef
    r"\bml_meth\s*=[^;]*?&([\w:<>]+)",
    r"\bours\.(?:get|set)\s*=[^;]*?&(\w+)",
    r"\bPyCapsule_New\([^;]*?,\s*&(\w+)\)",
    r"\b_?PyEval_Set(?:Trace|Profile)\([^;]*?&(\w+)",
    r"\bprofile_others\(&(\w+)",
    r"\bRecordFunctionCallback\(\s*&(\w+)",
    r"\bRecordFunctionCallback\(\s*&\w+,\s*&(\w+)",
    r"\bPy_AtExit\(\s*&(\w+)",
    r"\bPy_AddPendingCall\(\s*&(\w+)",
    r"\bclass (\w+) final : public torch::autograd::Function(?:Pre|Post)Hook",
)
# Capsules' destructors and observers that are written in place have no name to look up.
IN_PLACE = (
    r"\bPyCapsule_New\((?:[^;()]|\([^()]*\))*\[",
    r"\bPy_AtExit\(\s*\[",
    r"\b_?PyEval_Set(?:Trace|Profile)\([^;&]*\[",
)
# Neither runs Python, nor throws, nor needs a clear error indicator.
HARMLESS = {
    *(
        "active",
        "op_listener",
        "cuts_are_on",
        "is_on",
        "in_guard",
        "is_wanted",
        "wrapped_in",
        "unless",
    ),
    *("error_that_is_set", "static_cast", "reinterpret_cast", "ptr", "is_enabled", "max"),
    *("PyTuple_GET_SIZE", "PyTuple_GET_ITEM", "Py_TYPE", "PyErr_SetString", "PyErr_Fetch"),
    *("PyErr_NormalizeException", "PyException_SetTraceback", "PyErr_Restore"),
    *("Py_INCREF", "Py_XINCREF", "Py_DECREF", "Py_XDECREF", "Py_CLEAR"),
    *("if", "for", "while", "switch", "return", "sizeof", "constexpr", "void", "catch"),
}
# Where an op's boxed kernel is registered.
KERNELS = (
    r"\bboxed<&(\w+)",
    r"\bmakeFromBoxedFunction<&(\w+)>",
)
# In kernels: the op itself, questions about the thread's state, parts of the same body, and what
# has safely() inside.
OF_KERNELS = {
    *("forward", "running", "scope", "begin", "end", "refused", "before_nodes"),
    *("write_is_wanted", "view_is_wanted", "how_to_watch", "follows_values", "empty", "size"),
    *("isTensor", "toTensor", "schema", "returns", "arguments", "Watch"),
    *("on_write", "on_view", "on_result", "on_secret", "thread_state", "closed"),
    *("listened", "wants_nodes", "secrets"),
}
# What the entry stands for.
ORIGINALS = {"PyObject_Vectorcall", "original", "ml_meth", "get", "set", "tp_descr_get"}


class Fault(NamedTuple):
    file: str
    line: int
    entry: str
    what: str


def blank(text: str) -> str:
    """The text with comments and the insides of strings as blanks; lines stay where they are."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\''
    return re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.DOTALL)


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed."""
    pairs = {"(": ")", "{": "}"}
    opens, closes, depth = text[start], pairs[text[start]], 0
    for at in range(start, len(text)):
        depth += (text[at] == opens) - (text[at] == closes)
        if depth == 0:
            return at
    raise ValueError("a bracket that is never closed")


def bodies(text: str, name: str) -> list[tuple[int, str]]:
    """(where, text) of each definition of the function; a class's is its operator()."""
    if re.search(rf"\bclass {name} final", text):
        start = text.index(f"class {name} final")
        end = closing(text, text.index("{", start))
        pattern = re.compile(r"\boperator\(\)\s*(?=\()")
        places = [m.end() for m in pattern.finditer(text, start, end)]
    else:
        pattern = re.compile(rf"(?<![\w&:>.]){re.escape(name)}\s*(?=\()")
        places = [m.end() for m in pattern.finditer(text)]
    found = []
    for place in places:
        rest = closing(text, place) + 1
        opened = re.match(r"\s*(?:const\s*|override\s*|noexcept\s*)*(?=\{)", text[rest:])
        if opened:
            begin = rest + opened.end()
            found.append((begin, text[begin : closing(text, begin) + 1]))
    return found


def unprotected(body: str) -> str:
    """The body without what is given to aside() and the like."""
    pattern = re.compile(rf"\b(?:{'|'.join(PROTECTED)})\s*\(")
    while found := pattern.search(body):
        end = closing(body, found.end() - 1)
        inside = re.sub(r"[^\n]", " ", body[found.start() : end + 1])
        body = body[: found.start()] + inside + body[end + 1 :]
    return body


def entries(text: str) -> list[str]:
    names = {name.split("::")[-1] for table in TABLES for name in re.findall(table, text)}
    return sorted(names)


def check(folder: Path) -> tuple[int, list[Fault]]:
    """How many entries there are, and what is wrong with them."""
    count = 0
    faults = []
    for path in sorted(folder.rglob("*.cpp")):
        text = blank(path.read_text(encoding="utf-8"))
        file = path.relative_to(folder.parent).as_posix()
        for form in IN_PLACE:
            for found in re.finditer(form, text):
                line = text.count("\n", 0, found.start()) + 1
                faults.append(Fault(file, line, "a lambda", "has no name that could be checked"))
        kernels = {name for table in KERNELS for name in re.findall(table, text)}
        for name in sorted(kernels):
            for start, body in bodies(text, name):
                if re.search(r"\bforward\b", body):  # no op of gradext's own
                    count += 1
                    faults += _faults_of(file, text, name, start, body, OF_KERNELS)
        for name in entries(text):
            defined = bodies(text, name)
            if not defined:
                faults.append(Fault(file, 1, name, "is an entry that is defined elsewhere"))
            for start, body in defined:
                count += 1
                faults += _faults_of(file, text, name, start, body)
    return count, faults


def _faults_of(
    file: str, text: str, name: str, start: int, body: str, allowed: Set[str] = frozenset()
) -> list[Fault]:
    open_part = unprotected(body)
    faults = []
    # A kernel may throw on what the op has thrown.
    if re.search(r"\bthrow\b\s*[^\s;]" if allowed else r"\bthrow\b", open_part):
        faults.append(Fault(file, text.count("\n", 0, start) + 1, name, "throws"))
    # A name and `(`, or `(` behind template arguments; declarations of variables look alike.
    for call in re.finditer(r"\b([A-Za-z_]\w*)\s*(?:<[\w:*, ]*>)?\s*\(", open_part):
        if call[1] not in HARMLESS | ORIGINALS | allowed:
            line = text.count("\n", 0, start + call.start()) + 1
            faults.append(Fault(file, line, name, f"calls {call[1]}() outside of aside()"))
    return faults


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else ROOT / "csrc"
    count, faults = check(folder)
    for fault in faults:
        print(f"{fault.file}:{fault.line}: {fault.entry} {fault.what}")
    if count == 0:
        print(f"check_c_entries: no entry was found in {folder}")
    return 1 if faults or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
