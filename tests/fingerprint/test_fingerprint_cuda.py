"""What only a GPU shows: streams, captures, launches of any size."""

from __future__ import annotations

import pytest
import torch
from contents import SIZES, number, random_bytes, views

import gradext

pytestmark = pytest.mark.cuda
OPS = torch.ops.gradext


def on_cuda() -> list[torch.Tensor]:
    whole = random_bytes(20_000).cuda()
    tensors = [whole[start : start + size] for size in SIZES for start in (0, 1, 4, 8)]
    return [*tensors, *(view.cuda() for view in views().values()), whole.view(-1, 40)[:, 3:17]]


def by_cpu(tensors: list[torch.Tensor]) -> list[int]:
    return [gradext.fingerprint(t.cpu()) for t in tensors]


def test_a_list_has_the_values_of_the_cpu() -> None:
    tensors = on_cuda()
    rows = OPS.fingerprint_list(tensors)
    assert rows.is_cuda
    assert [number(row) for row in rows.tolist()] == by_cpu(tensors)
    assert list(gradext.fingerprint(tensors).values()) == by_cpu(tensors)


def test_a_list_is_one_kernel() -> None:
    tensors = [torch.ones(k, device="cuda") for k in range(2000)]
    OPS.fingerprint_list(tensors)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        OPS.fingerprint_list(tensors)
        torch.cuda.synchronize()
    assert sum("fingerprint" in event.name for event in profile.events()) == 1


def test_few_tensors_are_one_launch_and_nothing_else() -> None:
    tensors = [random_bytes(1 << 20).cuda() for _ in range(16)]
    OPS.fingerprint_list(tensors)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        OPS.fingerprint_list(tensors)
        torch.cuda.synchronize()
    on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(on_device) == 1, [event.name for event in on_device]


# 16 is the most that share scratch with the stream's other calls.
@pytest.mark.parametrize("count", [1, 16, 17])
def test_again_and_again_on_more_streams_than_have_scratch(count: int) -> None:
    tensors = [random_bytes(300_000 + k).cuda() for k in range(count)]
    pools = [torch.cuda.Stream(priority=priority) for priority in (0, -1) for _ in range(40)]
    not_torchs = torch.cuda.ExternalStream(torch.cuda.Stream().cuda_stream)
    streams = [torch.cuda.current_stream(), *pools, not_torchs]
    torch.cuda.synchronize()
    rows = []
    for _ in range(3):
        for stream in streams:
            with torch.cuda.stream(stream):
                rows.append(OPS.fingerprint_list(tensors))
    torch.cuda.synchronize()
    want = by_cpu(tensors)
    for found in rows:
        assert [number(row) for row in found.tolist()] == want


def test_a_graph_beside_calls_on_the_stream_that_captured_it() -> None:
    t = random_bytes(64 << 20).cuda()
    capturing, other = torch.cuda.Stream(), torch.cuda.Stream()
    OPS.fingerprint(t)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=capturing):
        captured = OPS.fingerprint(t)
    rows, copies = [], []
    for _ in range(50):
        with torch.cuda.stream(other):
            graph.replay()
            copies.append(captured.clone())
        with torch.cuda.stream(capturing):
            rows.append(OPS.fingerprint(t))
    torch.cuda.synchronize()
    want = gradext.fingerprint(t.cpu())
    assert {number(row.tolist()) for row in (*rows, *copies)} == {want}


@pytest.mark.parametrize("count", [1, 50, 2000])
def test_in_a_captured_graph(count: int) -> None:
    tensors = [torch.zeros(1 + k % 700, device="cuda") for k in range(count)]
    OPS.fingerprint_list(tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = OPS.fingerprint_list(tensors)
        one = OPS.fingerprint(tensors[0])
    for fill in (1.0, 2.0, 3.0):
        for t in tensors:
            t.fill_(fill)
        graph.replay()
        torch.cuda.synchronize()
        assert [number(row) for row in rows.tolist()] == by_cpu(tensors)
        assert number(one.tolist()) == gradext.fingerprint(tensors[0].cpu())


def test_the_python_door_refuses_a_capture_in_one_line() -> None:
    t = torch.ones(3, device="cuda")
    gradext.fingerprint(t)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="is being captured") as caught:
        gradext.fingerprint([t])
    assert "\n" not in str(caught.value)


def test_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    t = torch.zeros(1 << 24, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        t.fill_(7)
        row = OPS.fingerprint(t)
    stream.synchronize()
    assert number(row.tolist()) == gradext.fingerprint(torch.full((1 << 24,), 7.0))


def test_no_synchronisation() -> None:
    tensors = [torch.ones(10, device="cuda") for _ in range(500)]
    OPS.fingerprint_list(tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        OPS.fingerprint(tensors[0])
        OPS.fingerprint_list(tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_many_tiny_and_one_large_in_one_call() -> None:
    tiny = list(torch.arange(200_000.0, device="cuda").view(-1, 1).unbind())
    large = random_bytes(300 << 20).cuda()
    rows = OPS.fingerprint_list([*tiny[:100_000], large, *tiny[100_000:]])
    assert number(rows[100_000].tolist()) == gradext.fingerprint(large.cpu())
    places = [0, 1, 777, 99_999]
    assert [number(row) for row in rows[places].tolist()] == by_cpu([tiny[i] for i in places])
    assert number(rows[-1].tolist()) == gradext.fingerprint(tiny[-1].cpu())


def test_beyond_32_bits() -> None:
    size = (5 << 30) + 13
    if torch.cuda.mem_get_info()[0] < 2 * size:
        pytest.skip("not enough memory on this GPU")
    t = torch.zeros(size, dtype=torch.uint8, device="cuda")
    blank = OPS.fingerprint(t).tolist()
    seen = {tuple(blank)}
    for place in (0, (1 << 31) + 5, (1 << 32) + 5, size - 1):
        t[place] = 1
        seen.add(tuple(OPS.fingerprint(t).tolist()))
        t[place] = 0
    assert len(seen) == 5
    assert OPS.fingerprint(t).tolist() == blank
    t[-1] = 9
    assert number(OPS.fingerprint(t).tolist()) == gradext.fingerprint(t.cpu())


def test_two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    a, b = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")
    assert OPS.fingerprint(b).device == b.device
    assert OPS.fingerprint(a).tolist() == OPS.fingerprint(b).tolist()
    with pytest.raises(ValueError, match="item 1: on cuda:1"):
        OPS.fingerprint_list([a, b])
