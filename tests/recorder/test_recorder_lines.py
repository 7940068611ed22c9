"""The place of every write and save: file, line, columns and function, in every kind of code.

Each program is written to a file with « and » around the code that must be named, in the order in
which it runs (or with the order given). `x` is ones(3), version 0, `nn` and `torch` are there.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from events import place_of, recorded, unmark, user_line, writes

from gradext import _C
from gradext.diagnosis.model import Frame

# source, the qualified function of each write, and which mark each write is (default: in turn).
CASES: dict[str, tuple[str, list[str], list[int] | None]] = {
    "module level": ("«x.add_(1)»", ["<module>"], None),
    "within a long line": (
        "y = torch.ones(3) + «x.add_(1)» * torch.zeros(3).sum()",
        ["<module>"],
        None,
    ),
    "two in one line": ("«x.add_(1)»; «x.mul_(2)»", ["<module>"] * 2, None),
    "two in one expression": (
        "y = «x.add_(1)» + «torch.ones(3).mul_(2)»",
        ["<module>"] * 2,
        None,
    ),
    "one inside the other": ("«x.add_(«torch.ones(3).mul_(2)»)»", ["<module>"] * 2, [1, 0]),
    "augmented": ("«x += torch.ones(3)»", ["<module>"], None),
    "augmented attribute": (
        """
        class O: pass
        o = O()
        o.x = x
        «o.x += torch.ones(3)»
        """,
        ["<module>"],
        None,
    ),
    "index assignment": ("«x[0]» = 2.0", ["<module>"], None),
    "slice assignment": ("«x[0:2]» = torch.ones(2)", ["<module>"], None),
    "augmented index": ("««x[0:2]» += torch.ones(2)»", ["<module>"] * 2, [0, 1]),
    "out=": ("«torch.add(x, x, out=x)»", ["<module>"], None),
    "multi-line call": (
        """
        «torch.add(
            x,
            x,
            out=x,
        )»
        """,
        ["<module>"],
        None,
    ),
    "multi-line augmented": (
        """
        «x += (
            torch.ones(3)
            * 2
        )»
        """,
        ["<module>"],
        None,
    ),
    "backslash": ("«x \\\n    += torch.ones(3)»", ["<module>"], None),
    "for loop": (
        """
        for k in range(3):
            «x.add_(k)»
        """,
        ["<module>"] * 3,
        [0, 0, 0],
    ),
    "while with else": (
        """
        k = 0
        while k < 2:
            «x.add_(k)»
            k += 1
        else:
            «x.zero_()»
        """,
        ["<module>"] * 3,
        [0, 0, 1],
    ),
    "list comprehension": (
        "y = [«t.mul_(2)» for t in (x, x)]",
        ["<listcomp>"] * 2,
        [0, 0],
    ),
    "generator expression": ("y = sum(«t.mul_(2)» for t in (x, x))", ["<genexpr>"] * 2, [0, 0]),
    "dict comprehension": ("y = {k: «x.mul_(2)» for k in range(2)}", ["<dictcomp>"] * 2, [0, 0]),
    "lambda": ("f = lambda t: «t.mul_(2)»\nf(x)", ["<lambda>"], None),
    "nested function": (
        """
        def outer(t):
            def inner():
                «t.mul_(2)»
            inner()
        outer(x)
        """,
        ["outer.<locals>.inner"],
        None,
    ),
    "method": (
        """
        class Model:
            class Part:
                def step(self, t):
                    «t.mul_(2)»
        Model.Part().step(x)
        """,
        ["Model.Part.step"],
        None,
    ),
    "property, static and class methods": (
        """
        class Model:
            @property
            def a(self):
                return «x.mul_(2)»
            @staticmethod
            def b():
                return «x.mul_(3)»
            @classmethod
            def c(cls):
                return «x.mul_(4)»
        Model().a, Model.b(), Model.c()
        """,
        ["Model.a", "Model.b", "Model.c"],
        None,
    ),
    "dunder": (
        """
        class Model:
            def __call__(self, t):
                return «t.mul_(2)»
            def __enter__(self):
                «x.mul_(3)»
            def __exit__(self, *error):
                «x.mul_(4)»
        with Model() as m:
            Model()(x)
        """,
        ["Model.__enter__", "Model.__call__", "Model.__exit__"],
        [1, 0, 2],
    ),
    "decorator": (
        """
        import functools
        def doubling(f):
            @functools.wraps(f)
            def wrapper(t):
                «t.mul_(2)»
                return f(t)
            return wrapper
        @doubling
        def step(t):
            «t.add_(1)»
        step(x)
        """,
        ["doubling.<locals>.wrapper", "step"],
        None,
    ),
    "decorated by torch": (
        """
        @torch.no_grad()
        def step(t):
            «t.add_(1)»
        step(x)
        """,
        ["step"],
        None,
    ),
    "generator": (
        """
        def values():
            yield «x.mul_(2)»
            yield «x.mul_(3)»
        list(values())
        """,
        ["values"] * 2,
        None,
    ),
    "async": (
        """
        import asyncio
        async def inner():
            await asyncio.sleep(0)
            «x.mul_(2)»
        async def main():
            await asyncio.gather(inner(), inner())
            «x.mul_(3)»
        asyncio.run(main())
        """,
        ["inner", "inner", "main"],
        [0, 0, 1],
    ),
    "module hook": (
        """
        layer = nn.Identity()
        layer.register_forward_pre_hook(lambda m, a: («a[0].mul_(2)»,))
        layer.register_forward_hook(lambda m, a, out: «out.mul_(3)»)
        layer(x)
        """,
        ["<lambda>", "<lambda>"],
        None,
    ),
    "module forward": (
        """
        class Block(nn.Module):
            def forward(self, t):
                return «t.mul_(2)»
        nn.Sequential(Block())(x)
        """,
        ["Block.forward"],
        None,
    ),
    "tensor hook": (
        """
        w = torch.ones(3, requires_grad=True)
        w.register_hook(lambda g: «g.mul_(2)»)
        (w * torch.ones(3)).sum().backward()
        """,
        ["<lambda>"],
        None,
    ),
    "try, except, finally": (
        """
        try:
            «x.mul_(2)»
            raise ValueError
        except ValueError:
            «x.mul_(3)»
        finally:
            «x.mul_(4)»
        """,
        ["<module>"] * 3,
        None,
    ),
    "conditional expression": ("y = «x.mul_(2)» if x.sum() > 0 else x.mul_(3)", ["<module>"], None),
    "walrus and f-string": (
        "if (y := «x.mul_(2)») is x:\n    pass",
        ["<module>"],
        None,
    ),
    "sorted key": (
        "sorted([1], key=lambda k: «x.mul_(2)».sum().item())",
        ["<lambda>"],
        None,
    ),
    "after tabs": ("if True:\n\t«x.mul_(2)»", ["<module>"], None),
    "unicode before it": (
        "größe = 'žлuť 日本語 🎉'; «x.mul_(2)»",
        ["<module>"],
        None,
    ),
    "unicode inside it": ("ξ = x\n«ξ.mul_(len('žé'))»", ["<module>"], None),
    "match": (
        """
        match 1:
            case 1:
                «x.mul_(2)»
        """,
        ["<module>"],
        None,
    ),
}  # fmt: skip


def function_of(name: str) -> str:
    """What Python calls a function: comprehensions are inlined from 3.12."""
    inlined = sys.version_info >= (3, 12) and name in ("<listcomp>", "<dictcomp>")
    return "<module>" if inlined else name


def run_marked(source: str, folder: Path) -> tuple[list[Frame], list[Any], str]:
    """Frames of the writes, the marked places, and the file of the program."""
    text, places = unmark(source)
    path = folder / "program.py"
    path.write_text(text, encoding="utf-8")
    code = compile(text, str(path), "exec")
    names: dict[str, Any] = {
        "torch": torch, "nn": torch.nn, "x": torch.ones(3), "__name__": "program",
    }  # fmt: skip
    recording = recorded(lambda: exec(code, names))
    return [user_line(recording, w) for w in writes(recording)], places, str(path)


@pytest.mark.parametrize("name", CASES)
def test_place(name: str, tmp_path: Path) -> None:
    source, functions, order = CASES[name]
    frames, places, path = run_marked(source, tmp_path)
    expected = [places[k] for k in (range(len(places)) if order is None else order)]
    assert [place_of(frame) for frame in frames] == [place.known for place in expected]
    assert [frame.function for frame in frames] == [function_of(f) for f in functions]
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for frame in frames:
        assert frame.file == path
        assert frame.is_user
        assert frame.code == lines[frame.line - 1].strip()


def test_method_chain_over_lines_names_the_method(tmp_path: Path) -> None:
    source = """
    y = (
        x
        .«add_(1)»
        .«mul_(2)»
    )
    """
    frames, places, _ = run_marked(source, tmp_path)
    assert [frame.line for frame in frames] == [place.line for place in places] == [3, 4]
    if sys.version_info >= (3, 11):
        assert [(f.column, f.end_column) for f in frames] == [
            (place.column, place.end_column) for place in places
        ]


def test_exec_of_a_string() -> None:
    x = torch.ones(3)
    recording = recorded(lambda: exec("y = 1\nx.mul_(2)", {"x": x}))
    frame = user_line(recording, writes(recording)[0])
    assert (frame.file, frame.line, frame.function) == ("<string>", 2, "<module>")
    assert frame.is_user
    assert frame.code == ""


def test_the_stack_is_whole_and_innermost_first() -> None:
    x = torch.ones(3)

    def inner() -> None:
        x.mul_(2)

    def middle() -> None:
        inner()

    recording = recorded(lambda: middle())
    (write,) = writes(recording)
    frames = recording.frames(write.stack)
    names = [frame.function.rsplit(".", 1)[-1] for frame in frames[:4]]
    assert names == ["inner", "middle", "<lambda>", "recorded"]
    assert [frame.code for frame in frames[:3]] == [
        "x.mul_(2)",
        "inner()",
        "recording = recorded(lambda: middle())",
    ]
    assert any("pytest" in frame.file and not frame.is_user for frame in frames)


@pytest.mark.parametrize("depth", [10, 200, 300, 900])
def test_deep_recursion(depth: int) -> None:
    """More frames than the recorder keeps: the innermost ones are exact."""
    x = torch.ones(3)

    def down(level: int) -> None:
        if level:
            down(level - 1)
        else:
            x.mul_(2)  # deepest
        if level == depth:
            x.mul_(3)  # after it

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(3000)
    try:
        recording = recorded(lambda: down(depth))
    finally:
        sys.setrecursionlimit(limit)
    deep, after = writes(recording)
    assert user_line(recording, deep).code == "x.mul_(2)  # deepest"
    assert user_line(recording, after).code == "x.mul_(3)  # after it"
    frames = recording.frames(deep.stack)
    calls = sum(frame.code == "down(level - 1)" for frame in frames)
    assert calls == min(depth, 255)
    # 256 frames, and one that says that there were more.
    assert len(frames) == 257 if depth > 255 else len(frames) > depth
    assert sum(frame.code == "down(level - 1)" for frame in recording.frames(after.stack)) == 0


def test_one_line_run_twice_is_one_stack_and_two_calls_are_two() -> None:
    x = torch.ones(3)

    def step() -> None:
        x.mul_(2)

    def program() -> None:
        for _ in range(3):
            step()
        step()

    recording = recorded(program)
    first, second, third, fourth = (write.stack for write in writes(recording))
    assert first == second == third != fourth
    inner = [recording.frames(stack)[0] for stack in (first, fourth)]
    assert inner[0] == inner[1]
    callers = [recording.frames(stack)[1].line for stack in (first, fourth)]
    assert callers[1] == callers[0] + 1


def test_code_that_is_gone_keeps_its_line() -> None:
    """A function compiled, run and dropped: its code object's address must not be used again."""
    x = torch.ones(3)

    def program() -> None:
        for k in range(50):
            names: dict[str, Any] = {}
            exec("\n" * k + "def f(x): x.mul_(2)", names)
            names["f"](x)

    recording = recorded(program)
    lines = [recording.frames(write.stack)[0].line for write in writes(recording)]
    assert lines == list(range(1, 51))


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_lines_within_threads_and_event_loops(kind: str) -> None:
    x = torch.ones(3)

    def step() -> None:
        x.mul_(2)

    async def main() -> None:
        step()

    def program() -> None:
        if kind == "thread":
            thread = threading.Thread(target=step)
            thread.start()
            thread.join()
        else:
            asyncio.run(main())

    recording = recorded(program)
    frame = user_line(recording, writes(recording)[0])
    assert (frame.code, frame.function.rsplit(".", 1)[-1]) == ("x.mul_(2)", "step")


SAVES: dict[str, tuple[str, list[int]]] = {
    "in one line": ("y = ««(«w * 2»).sin()» * w»", [0, 1, 2]),
    "in turn": ("a = «w * 2»\nb = «a.sin()»\ny = «b.exp()»", [2, 1, 0]),
    "in a loop": ("y = w\nfor _ in range(3):\n    y = «y.sin()»", [0, 0, 0]),
    "after ops that save nothing": (
        "a = «w * 2»\nz = torch.ones(3) + 1\nz.add_(1)\nv = z.view(-1)\ny = «a.exp()»",
        [1, 0],
    ),
    "with no_grad between": (
        "a = «w * 2»\nwith torch.no_grad():\n    z = w * 3\ny = «a.exp()»",
        [1, 0],
    ),
    "module": ("layer = nn.Sequential(nn.Tanh(), nn.Sigmoid())\ny = «layer(w)»", [0, 0]),
}


@pytest.mark.parametrize("name", SAVES)
def test_place_of_a_save(name: str, tmp_path: Path) -> None:
    """From the last node back to the first: the line that made each."""
    source, order = SAVES[name]
    text, places = unmark(source)
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    names: dict[str, Any] = {
        "torch": torch, "nn": torch.nn, "w": torch.ones(3, requires_grad=True),
    }  # fmt: skip
    recording = recorded(lambda: exec(compile(text, str(path), "exec"), names))
    nodes, _ = _C.graph([names["y"]])
    found = []
    for _, _, thread, sequence, _, _ in nodes:
        if sequence is not None:
            stack, _ = recording.data.node_stack(thread, sequence)
            frame = next(f for f in recording.frames(stack) if f.is_user)
            assert frame.file == str(path)
            found.append(place_of(frame))
    assert found == [places[k].known for k in order]
