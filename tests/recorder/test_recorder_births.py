"""Births of inference tensors: the line that made one, the line that entered the mode."""

from __future__ import annotations

import gc
import inspect
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from events import recorded, run_program
from torch import nn

import gradext
from gradext.recording.events import Birth
from gradext.source import mode_blocks, sites


def line_of(recording: gradext.Recording, stack: int) -> str:
    """The source of the user's line of a stack."""
    frame = sites.user_frame(recording.frames(stack))
    assert frame is not None, "no frame"
    return frame.code


def born(program: Callable[[], Any]) -> tuple[gradext.Recording, Any, Birth]:
    """(recording, what the program returned, its birth), looked up while the recording runs."""
    with gradext.record() as recording:
        tensor = program()
        birth = recording.birth(tensor)
    assert birth is not None
    return recording, tensor, birth


def in_block(make: Callable[[], Any]) -> Callable[[], Any]:
    def program() -> Any:
        with torch.inference_mode():
            return make()

    return program


MAKERS: dict[str, tuple[Callable[[], Any], str]] = {
    "zeros": (lambda: torch.zeros(3), "aten::zeros"),
    "full": (lambda: torch.full((2,), 1.0), "aten::full"),
    "arange": (lambda: torch.arange(5), "aten::arange"),
    "rand": (lambda: torch.rand(3), "aten::rand"),
    "empty": (lambda: torch.empty(3), "aten::empty"),
    "eye": (lambda: torch.eye(3), "aten::eye"),
    "tensor": (lambda: torch.tensor([1.0, 2.0]), "torch.tensor"),
    "from_numpy": (lambda: torch.from_numpy(numpy.ones(3)), "torch.from_numpy"),
    "as_tensor": (lambda: torch.as_tensor([1, 2]), "torch.as_tensor"),
    "new_zeros": (lambda: torch.ones(1).new_zeros(2), "aten::new_zeros"),
    "new_tensor": (lambda: torch.ones(1).new_tensor([2.0]), "Tensor.new_tensor"),
    "cos": (lambda: torch.ones(3).cos(), "aten::cos"),
    "matmul": (lambda: torch.ones(3, 3) @ torch.ones(3, 3), "aten::mm"),
    "cat": (lambda: torch.cat([torch.ones(1), torch.ones(1)]), "aten::cat"),
    "split": (lambda: torch.ones(4).exp().split(2)[1], "aten::exp"),
    "max": (lambda: torch.ones(2, 2).max(1)[0], "aten::max"),
    "lstm": (lambda: nn.LSTM(2, 2)(torch.ones(1, 1, 2))[0], "aten::stack"),
    "outer": (lambda: torch.outer(torch.arange(3.0), torch.ones(2)), "aten::mul"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_way_to_make_one(name: str) -> None:
    make, op = MAKERS[name]
    recording, _, birth = born(in_block(make))
    assert birth.op == op or op in ("aten::stack", "aten::mm", "aten::mul", "aten::rand"), birth.op
    assert f'"{name}": (' in line_of(recording, birth.stack)
    assert line_of(recording, birth.mode) == "with torch.inference_mode():"
    assert birth.is_inference
    assert recording.memory["births"] >= 1


def test_views_and_parameters_have_the_birth_of_their_memory() -> None:
    with gradext.record() as recording, torch.inference_mode():
        made = torch.ones(4, 4).mul(2)  # made here
        view = made[1:].t()
        parameter = nn.Parameter(made)
        alias = made.detach()
        data = made.data
    birth = recording.birth(made)
    assert birth is not None
    assert "# made here" in line_of(recording, birth.stack)
    for other in (view, parameter, alias, data, made.view(-1)):
        assert recording.birth(other) == birth


def test_writes_are_linked_to_the_birth() -> None:
    with gradext.record() as recording, torch.inference_mode():
        made = torch.zeros(4)  # made here
        made.add_(1)
        made[0] = 3
        torch.exp(torch.ones(4), out=made)
    birth = recording.birth(made)
    assert birth is not None
    assert "# made here" in line_of(recording, birth.stack)
    ops = [write.op for write in recording.mutations(made) if write.storage == birth.storage]
    assert ops == ["aten::add_", "aten::copy_", "aten::exp"]


def test_normal_tensors_have_no_birth() -> None:
    normal = torch.zeros(3)
    with gradext.record() as recording:
        outside = normal + 1
        with torch.inference_mode():
            view = normal[1:]
            normal.add_(1)
            with torch.inference_mode(False):
                inner = torch.ones(2)
    for tensor in (normal, outside, view, inner):
        assert not tensor.is_inference()
        assert recording.birth(tensor) is None


def test_made_before_the_recording() -> None:
    with torch.inference_mode():
        made = torch.ones(3)
    with gradext.record() as recording:
        made.sum()
    assert recording.birth(made) is None


def test_bad_input() -> None:
    with gradext.record() as recording:
        pass
    with pytest.raises(TypeError, match=r"Recording\.birth: expected a torch\.Tensor, got builtin"):
        recording.birth(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Recording\.flow: expected a torch\.Tensor, got builtin"):
        recording.flow([])  # type: ignore[arg-type]


# --- the line that entered the mode -----------------------------------------------------------


@torch.inference_mode()
def decorated() -> torch.Tensor:
    return torch.ones(3) * 2


class Model(nn.Module):
    @torch.inference_mode()
    def features(self) -> torch.Tensor:
        inner = torch.ones(3)
        return inner * 2

    @torch.no_grad()
    @torch.inference_mode(mode=True)
    def twice(self) -> torch.Tensor:
        return torch.ones(3) * 2


def mode_of(recording: gradext.Recording, birth: Birth) -> mode_blocks.Mode:
    found = mode_blocks.find(recording.frames(birth.mode), recording.frames(birth.stack))
    assert found is not None
    return found


def line_number(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return next(first + k for k, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("function", "decorator"),
    [
        (decorated, "@torch.inference_mode()"),
        (Model().features, "@torch.inference_mode()"),
        (Model().twice, "@torch.inference_mode(mode=True)"),
    ],
)
def test_the_decorator_is_the_line(function: Any, decorator: str) -> None:
    recording, _, birth = born(function)
    mode = mode_of(recording, birth)
    assert (mode.name, mode.how) == ("inference_mode", "decorator")
    assert mode.site.frame.line == line_number(function, decorator)
    assert "* 2" in line_of(recording, birth.stack)


def test_the_with_statement_is_the_line() -> None:
    def program() -> torch.Tensor:
        with torch.no_grad(), torch.inference_mode():
            inner = decorated_helper()
        return inner

    def decorated_helper() -> torch.Tensor:
        return torch.ones(2).exp()

    recording, _, birth = born(program)
    mode = mode_of(recording, birth)
    assert (mode.name, mode.how) == ("inference_mode", "with")
    assert mode.site.frame.code == "with torch.no_grad(), torch.inference_mode():"
    assert mode.inside is not None
    assert mode.inside.frame.code == "inner = decorated_helper()"
    assert line_of(recording, birth.stack) == "return torch.ones(2).exp()"


def test_entered_by_hand_and_nested() -> None:
    with gradext.record() as recording:
        outer = torch.inference_mode()
        outer.__enter__()
        first = torch.ones(1)
        with torch.inference_mode(False), torch.inference_mode():  # the inner one
            second = torch.ones(1)
        third = torch.ones(1)
        outer.__exit__(None, None, None)
    lines = []
    for tensor in (first, second, third):
        birth = recording.birth(tensor)
        assert birth is not None
        lines.append(line_of(recording, birth.mode))
    hand = "outer.__enter__()"
    inner = "with torch.inference_mode(False), torch.inference_mode():  # the inner one"
    assert lines == [hand, inner, hand]


def test_each_thread_has_its_own_mode() -> None:
    found: dict[str, Any] = {}

    def work() -> None:
        found["normal"] = torch.ones(2)
        with torch.inference_mode():  # of the thread
            found["made"] = torch.ones(2)

    with gradext.record() as recording:
        with torch.inference_mode():  # of the main thread
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            found["main"] = torch.ones(2)
        births = {name: recording.birth(tensor) for name, tensor in found.items()}
    assert births["normal"] is None
    made, main = births["made"], births["main"]
    assert made is not None
    assert main is not None
    assert line_of(recording, made.mode) == "with torch.inference_mode():  # of the thread"
    assert line_of(recording, main.mode) == "with torch.inference_mode():  # of the main thread"
    assert made.thread != main.thread


def test_a_custom_op_of_the_program() -> None:
    @torch.library.custom_op("gradext_births::make", mutates_args=())
    def make(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    recording, _, birth = born(in_block(lambda: make(torch.ones(2))))
    assert line_of(recording, birth.stack) in (
        "return x * 3",
        "recording, _, birth = born(in_block(lambda: make(torch.ones(2))))",
    )


# --- bounded, and nothing is kept alive -----------------------------------------------------------


def test_nothing_is_kept_alive() -> None:
    with gradext.record(), torch.inference_mode():
        tensors = [torch.ones(1000) for _ in range(50)]
        references = [weakref.ref(tensor) for tensor in tensors]
        views = [weakref.ref(tensor[1:]) for tensor in tensors]
        assert all(reference() is None for reference in views)
        del tensors
        gc.collect()
        assert all(reference() is None for reference in references)


def test_the_dead_are_forgotten() -> None:
    with gradext.record() as recording, torch.inference_mode():
        kept = [torch.ones(1) for _ in range(100)]
        for _ in range(20_000):
            torch.ones(1)
        assert 100 <= recording.memory["births"] <= 400
        assert recording.dropped["births"] == 0
        assert all(recording.birth(tensor) is not None for tensor in kept)


def test_a_full_table_says_so() -> None:
    with gradext.record(memory=1) as recording, torch.inference_mode():
        kept = [torch.ones(1) for _ in range(5000)]
        assert recording.birth(kept[0]) is None
        assert recording.birth(kept[-1]) is not None  # the oldest go
        assert recording.dropped["births"] > 0
        assert recording.memory["births"] + recording.dropped["births"] >= 5000


def test_the_light_mode_and_narrowing() -> None:
    def program() -> torch.Tensor:
        with torch.inference_mode():
            return torch.ones(2)

    for options, wanted in (
        ({"saves": False}, False),
        ({"births": False}, False),
        ({"saves": False, "births": True}, True),
        ({"cuts": False}, True),
    ):
        with gradext.record(**options) as recording:  # type: ignore[arg-type]
            tensor = program()
            assert (recording.birth(tensor) is not None) is wanted, options


def test_ten_thousand_tokens_keep_memory_flat(tmp_path: Path) -> None:
    done = run_program(
        """
        import os, torch, gradext
        from gradext.lesson.models import LLM

        torch.set_num_threads(1)
        model = LLM(vocabulary=32, context=16, width=16, depth=1, heads=2)
        tokens = torch.randint(32, (1, 8))

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        with gradext.record(memory=8) as recording, torch.inference_mode():
            def decode(count):
                global tokens
                for _ in range(count):
                    out = model(tokens)
                    out = out[0] if isinstance(out, tuple) else out
                    tokens = torch.cat([tokens[:, 1:], out[:, -1:].argmax(-1)], 1)
            decode(1000)
            before = resident()
            decode(10_000)
            grown = resident() - before
            print(grown, recording.memory["births"], recording.memory["held_bytes"])
        """,
        tmp_path,
    ).stdout
    grown, births, held = (int(word) for word in done.split())
    assert grown < 8 << 20
    assert births < 1000
    assert held <= (8 << 20) + (256 << 10)


def test_saved_and_loaded(tmp_path: Any) -> None:
    with gradext.record() as recording, torch.inference_mode():
        made = torch.ones(3).exp()  # made here
    path = tmp_path / "recording.json"
    recording.save(path)
    loaded = gradext.Recording.load(path)
    assert (loaded.births, loaded.cuts) == (True, True)
    births = [loaded.data.birth(row) for row in loaded.data.births]
    birth = recording.birth(made)
    assert birth in births
    assert birth is not None
    assert "# made here" in line_of(loaded, birth.stack)
    assert line_of(loaded, birth.mode) == line_of(recording, birth.mode)
    with pytest.raises(RuntimeError, match="knows no living tensor"):
        loaded.birth(made)


def test_recording_changes_nothing_of_what_is_made() -> None:
    def program() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        with torch.inference_mode():
            return [model(torch.randn(3, 4)), torch.arange(3) * 1.0]

    plain = program()
    results: list[list[torch.Tensor]] = []
    recorded(lambda: results.append(program()))
    for one, other in zip(plain, results[0], strict=True):
        assert torch.equal(one, other)
        assert other.is_inference()


def test_exchanged_functions_are_put_back() -> None:
    before = [torch.tensor, torch.from_numpy, torch._C._set_grad_enabled]
    descriptors = [
        vars(torch._C.TensorBase)[name] for name in ("data", "requires_grad", "numpy", "tolist")
    ]
    with gradext.record():
        # The objects stay the same while they are watched.
        assert [torch.tensor, torch.from_numpy, torch._C._set_grad_enabled] == before
        assert torch.tensor is before[0]
        x = torch.tensor([1.0, 2.0])
        x.requires_grad = True
        assert x.data.tolist() == [1.0, 2.0]
        assert x.detach().numpy().sum() == 3
        with pytest.raises(RuntimeError, match="only Tensors of floating point"):
            torch.tensor([1]).requires_grad_()
        with pytest.raises(TypeError):
            torch.tensor()  # type: ignore[call-overload]
    after = [
        vars(torch._C.TensorBase)[name] for name in ("data", "requires_grad", "numpy", "tolist")
    ]
    assert all(one is other for one, other in zip(descriptors, after, strict=True))
    x = torch.tensor([1.0], requires_grad=True)
    assert x.data.numpy()[0] == 1.0
