"""Several threads: reads are right while others write, and the modes are each thread's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from facts import DOORS, MODES, NAMESPACE, assert_agrees, read_everything

import gradext
from gradext import ops

THREADS = 8
ROUNDS = 200


def run_together(functions: list[Callable[[], None]]) -> None:
    """Run each function on a thread of its own, all started at once; raise the first failure."""
    barrier = threading.Barrier(len(functions))

    def body(function: Callable[[], None]) -> None:
        barrier.wait()
        function()

    with ThreadPoolExecutor(len(functions)) as pool:
        list(pool.map(body, functions))


def test_own_tensors_are_exact_on_every_thread() -> None:
    def work() -> None:
        t = torch.ones(8, requires_grad=True) * 1
        for round_ in range(ROUNDS):
            view = t[round_ % 8 :]
            assert ops.version(t) == NAMESPACE.version(view) == round_
            assert ops.base(view) is t
            assert ops.shares_version_counter(t, view)
            t.add_(1)
        assert_agrees(t)

    run_together([work] * THREADS)


def test_shared_tensors_while_one_thread_writes_and_makes_views() -> None:
    shared = torch.ones(8)
    views = [shared[1:], shared.detach(), shared.view(2, 4)]
    column = gradext.STATE_COLUMNS.index("version")
    done = threading.Event()
    reads = [0] * THREADS

    def write() -> None:
        try:
            for _ in range(ROUNDS * 10):
                shared.add_(1)
                assert ops.base(shared[2:]) is shared
        finally:
            done.set()

    def reader(number: int) -> Callable[[], None]:
        def read() -> None:
            last = 0
            while True:
                finished = done.is_set()
                for t in (shared, *views):
                    for version in (
                        ops.version(t),
                        NAMESPACE.version(t),
                        gradext.inspect(t).version,
                        int(gradext.states([t]).array[0, column]),
                    ):
                        # One counter, which only grows: each read is at least the one before it.
                        assert last <= version <= ROUNDS * 10
                        last = version
                assert ops.base(views[0]) is shared
                assert ops.shares_version_counter(shared, views[1])
                reads[number] += 1
                if finished:
                    break
            assert last == ROUNDS * 10

        return read

    run_together([write, *(reader(number) for number in range(THREADS))])
    assert min(reads) > 0
    assert ops.version(shared) == shared._version == ROUNDS * 10


def test_reads_while_another_thread_rebuilds_the_node_of_a_view() -> None:
    names = {"SliceBackward0", "AsStridedBackward0"}
    for _ in range(30):
        leaf = torch.ones(4, requires_grad=True)
        base = leaf * 1
        view, other = base[:2], base[2:]
        assert view.grad_fn.name() == "SliceBackward0"
        other.mul_(2)

        def read(view=view, base=base) -> None:
            for _ in range(20):
                state = gradext.inspect(view)
                assert state.grad_fn in names
                assert state.version == 1
                assert ops.base(view) is base

        def rebuild(view=view) -> None:
            assert view.grad_fn.name() == "AsStridedBackward0"

        run_together([read, rebuild, read, rebuild])
        (view.sum() + base.sum()).backward()
        assert leaf.grad.tolist() == [2.0, 2.0, 2.0, 2.0]


def test_everything_at_once_on_every_thread() -> None:
    leaf = torch.ones(4, requires_grad=True)
    product = leaf * 2
    tensors = [leaf, product, product[1:], product.detach()]

    def work() -> None:
        for _ in range(5):
            for t in tensors:
                read_everything(t)

    run_together([work] * 4)
    (product.sum() + tensors[2].sum()).backward()
    assert leaf.grad.tolist() == [2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_the_modes_are_each_thread_s_own(door) -> None:
    expected = {"grad": (True, False), "no_grad": (False, False), "inference_mode": (False, True)}
    inside = threading.Barrier(THREADS + 1)

    def in_mode(mode: str) -> Callable[[], None]:
        def work() -> None:
            with MODES[mode]():
                inside.wait()  # all threads are in their modes now, and stay until all have read
                grad_mode, inference_mode, included, _ = door.grad_mode_state()
                t = torch.ones(1)
                inside.wait()
            assert (grad_mode, inference_mode) == expected[mode]
            assert ("ADInplaceOrView" in included) == (mode != "inference_mode")
            assert door.is_inference(t) == (mode == "inference_mode")
            assert tuple(door.grad_mode_state()[:2]) == (True, False)

        return work

    modes = [list(MODES)[number % len(MODES)] for number in range(THREADS)]
    with torch.inference_mode():
        # A new thread starts in grad mode, whatever the thread that started it is in.
        run_together([*(in_mode(mode) for mode in modes), in_mode("grad")])
        assert tuple(door.grad_mode_state()[:2]) == (False, True)
    assert tuple(door.grad_mode_state()[:2]) == (True, False)


def test_a_read_in_a_backward_hook_runs_on_the_autograd_thread() -> None:
    leaf = torch.ones(3, requires_grad=True)
    product = leaf * 2
    seen = []

    def hook(grad: torch.Tensor) -> None:
        read_everything(grad)
        seen.append((ops.version(product), ops.grad_mode_state().grad_mode))

    product.register_hook(hook)
    product.sum().backward()
    product_2 = leaf * 2
    product_2.register_hook(hook)
    product_2.sum().backward(create_graph=False)
    assert seen == [(0, False), (0, False)]
