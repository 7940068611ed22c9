"""No tensor is kept alive, and a new tensor at an old address is never taken for the old one."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from events import history, recorded, run_program, shorts, writes
from torch.multiprocessing.reductions import StorageWeakRef

import gradext


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_tensors_die_when_dropped(saves: bool) -> None:
    with gradext.record(saves=saves) as recording:
        x = torch.ones(3, requires_grad=True)
        y = x * 2
        y.neg_()
        v = y.detach()[0]
        v.zero_()
        with torch.no_grad():
            w = x[1]
        y.sum().backward()
        tensors = [weakref.ref(t) for t in (x, y, v, w)]
        assert x.grad is not None
        tensors.append(weakref.ref(x.grad))
        storages = [StorageWeakRef(t.untyped_storage()) for t in (x, y)]
        gc.collect()
        assert not any(storage.expired() for storage in storages)
        del x, y, v, w
        gc.collect()
        assert [ref() for ref in tensors] == [None] * 5
        assert [storage.expired() for storage in storages] == [True, True]
    assert len(writes(recording)) >= 2
    assert [ref() for ref in tensors] == [None] * 5


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_their_memory_goes_back(tmp_path: Path) -> None:
    done = run_program(
        """
        import os
        import torch
        import gradext

        def rss():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

        with gradext.record() as recording:
            before = rss()
            for _ in range(30):
                x = torch.ones(16 << 20, requires_grad=True)  # 64 MiB
                y = x * 2
                y.neg_()
                with torch.no_grad():
                    v = x[1:]
            most = rss() - before
            del x, y, v
            after = rss() - before
        print(most, after)
        """,
        tmp_path,
    )
    most, after = map(int, done.stdout.split())
    assert 100 < most < 300  # two of them, and two more while they are replaced
    assert after < 32


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_a_new_tensor_has_no_history(size: int) -> None:
    """Allocated again and again in the same size, which gives the same addresses."""
    pointers = set()
    with gradext.record() as recording:
        for _ in range(300):
            x = torch.empty(size)
            assert list(recording.mutations(x)) == []
            x.zero_()
            assert history(recording, x) == [("zero_", 0, 1)]
            pointers.add(x.data_ptr())
            del x
    assert len(pointers) < 300, "no address was used again: this proves nothing"
    assert len(writes(recording)) == 300


def test_a_new_tensor_has_no_history_after_the_recording() -> None:
    with gradext.record() as recording:
        tensors = [torch.empty(50) for _ in range(200)]
        pointers = {x.data_ptr() for x in tensors}
        for x in tensors:
            x.zero_()
        del x, tensors
    reused = 0
    kept = []
    for _ in range(2000):
        x = torch.empty(50)
        reused += x.data_ptr() in pointers
        assert list(recording.mutations(x)) == []
        kept.append(x)
    assert reused > 0, "no address was used again: this proves nothing"
    assert len(writes(recording)) == 200


def test_nor_after_a_nested_recording_ended() -> None:
    with gradext.record() as outer:
        with gradext.record() as inner:
            torch.empty(50).zero_()
        for _ in range(500):
            x = torch.empty(50)
            assert list(inner.mutations(x)) == []
            assert list(outer.mutations(x)) == []
            del x


def test_nor_when_its_events_were_dropped() -> None:
    """A dropped event gives its address free; what is kept must still not match."""
    with gradext.record(memory=1) as recording:
        for _ in range(20_000):
            torch.empty(50).zero_()
        assert recording.dropped["writes"] > 0
        for _ in range(200):
            x = torch.empty(50)
            assert list(recording.mutations(x)) == []
            x.zero_()
            assert history(recording, x) == [("zero_", 0, 1)]
            del x


def test_a_recording_of_its_own_for_each_step() -> None:
    recordings = []
    for _ in range(50):
        x = torch.empty(50)
        recordings.append(recorded(lambda x=x: x.zero_()))
        assert history(recordings[-1], x) == [("zero_", 0, 1)]
        del x
    fresh = [torch.empty(50) for _ in range(200)]
    for recording in recordings:
        assert shorts(recording) == [("zero_", 0, 1)]
        assert not any(len(recording.mutations(x)) for x in fresh)


def test_a_recording_keeps_no_storage_alive() -> None:
    x = torch.ones(3)
    storage = StorageWeakRef(x.untyped_storage())
    with gradext.record() as recording:
        x.neg_()
    assert writes(recording)[0].storage == gradext.inspect(x).storage
    del x
    gc.collect()
    assert storage.expired()
    assert shorts(recording) == [("neg_", 0, 1)]
