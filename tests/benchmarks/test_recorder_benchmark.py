"""benchmarks/recorder.py: the rows it writes, the bars it holds them to, the picture it draws."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import torch

from gradext.mode_costs import timing

ROOT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))
import peers  # noqa: E402
import plot_recorder  # noqa: E402
import recorder  # noqa: E402
import recorder_child  # noqa: E402

sys.path.remove(str(BENCHMARKS))

NOTHING, ANOMALY, FULL, LIGHT = (
    peers.WAYS[name].label for name in ("nothing", "anomaly", "full", "light")
)
MACHINE = {"processor": "a machine", "torch": "2.0", "date": "2000-01-01", "commit": "abc"}


def script(*words):
    return forks.script(BENCHMARKS / "recorder.py", *map(str, words), folder=ROOT)


def child(*words):
    """What recorder.py starts to measure memory, or what is there before gradext is imported."""
    command = [sys.executable, str(BENCHMARKS / "recorder_child.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180)


def timed(subject, way, ratio, low=None, high=None, share=None):
    """A row as measure() makes it, with the numbers that the bars and the picture read."""
    chosen = peers.SUBJECTS[subject]
    return recorder.row(
        group=chosen.group,
        subject=chosen.label,
        way=peers.WAYS[way].label,
        us=100.0 * ratio,
        times_nothing=ratio,
        low=ratio if low is None else low,
        high=ratio if high is None else high,
        added_us=100.0 * ratio - 100.0,
        share=share,
        rounds=9,
        calls=4,
        threads=1,
        clock="wall",
    )


def rows_of(subject, *, full, light, anomaly, share=None):
    return [
        timed(subject, "nothing", 1.0),
        timed(subject, "anomaly", anomaly, share=None if share is None else 1.0),
        timed(subject, "full", full, share=share),
        timed(subject, "light", light),
    ]


def idle(low, high):
    return recorder.row(
        group="idle", subject="no recording: x", way="y", times_nothing=1.0, low=low, high=high
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A real run of two subjects under three ways; the light mode is left out."""
    out = tmp_path_factory.mktemp("quick")
    words = ["--subjects", "mlp,differentiable", "--ways", "anomaly,full", "--quick", "--check"]
    return script(*words, "--out", out), out


def test_a_quick_run_writes_the_rows_and_the_picture(quick):
    done, out = quick
    assert f"written: {out / 'recorder.png'}" in done.stdout, done.stderr
    result = json.loads((out / "recorder.json").read_text())
    assert result["benchmark"] == "recorder"
    rows = result["rows"]
    assert [(row["subject"], row["way"]) for row in rows] == [
        (peers.SUBJECTS[subject].label, way)
        for subject in ("differentiable", "mlp")
        for way in (NOTHING, ANOMALY, FULL)
    ]
    assert all(tuple(row) == recorder.KEYS for row in rows)
    assert (out / "recorder.png").read_bytes().startswith(b"\x89PNG")


def test_the_intervals_of_a_real_run_are_honest(quick):
    _, out = quick
    rows = json.loads((out / "recorder.json").read_text())["rows"]
    for row in rows:
        assert row["rounds"] >= timing.MIN_ROUNDS  # below, no 95 % interval exists
        assert row["low"] <= row["times nothing"] <= row["high"]
        assert row["us"] > 0
        assert row["calls"] > 1
        assert (row["threads"], row["clock"]) == (1, "wall")
    by_way = {(row["subject"], row["way"]): row for row in rows}
    for subject in ("differentiable", "mlp"):
        label = peers.SUBJECTS[subject].label
        nothing, anomaly = by_way[label, NOTHING], by_way[label, ANOMALY]
        assert nothing["low"] == nothing["high"] == 1.0
        assert nothing["added us"] == 0.0
        assert by_way[label, FULL]["low"] < by_way[label, FULL]["high"]
        # Anomaly mode takes a stack for each node: several times nothing, on any machine.
        assert anomaly["low"] > 1.5
        assert anomaly["of anomaly's added"] == 1.0
        assert by_way[label, FULL]["of anomaly's added"] < 1.0


def test_check_fails_where_a_bar_was_not_measured(quick):
    done, _ = quick
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("missed: ")]
    mlp = peers.SUBJECTS["mlp"].label
    assert [line for line in lines if line.endswith("not measured")] == [
        f"missed: {mlp}, {LIGHT}: not measured"
    ]


def test_full_recording_without_anomaly_beside_it_is_not_measured():
    rows = [timed("functional", "nothing", 1.0), timed("functional", "full", 1.0)]
    (line,) = recorder.missed(rows)
    assert line.endswith(f"{FULL} against {ANOMALY}: not measured")


GOOD = [
    *rows_of("mlp", full=1.14, light=1.09, anomaly=4.0, share=0.05),
    *rows_of("differentiable", full=2.0, light=2.0, anomaly=30.0, share=0.03),
    *rows_of("functional", full=1.1, light=1.3, anomaly=1.0),
    *rows_of("gpt2", full=1.02, light=1.03, anomaly=1.05),
    idle(0.99, 1.01),
]


def test_rows_within_the_bars_pass():
    assert recorder.missed(GOOD) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (rows_of("mlp", full=1.16, light=1.0, anomaly=4.0, share=0.05), "(at most 1.15)"),
        (rows_of("mlp", full=1.1, light=1.11, anomaly=4.0, share=0.03), "(at most 1.1)"),
        (rows_of("transformer-64", full=1.3, light=1.0, anomaly=4.0, share=0.1), "1.300 ["),
        (rows_of("transformer-256", full=1.04, light=1.0, anomaly=1.1), "(at most 1.03)"),
        (rows_of("gpt2", full=1.0, light=1.04, anomaly=1.1), "saves=False): 1.040"),
        (rows_of("mlp", full=1.1, light=1.0, anomaly=2.0, share=0.2), "adds 0.200 of what"),
        (rows_of("functional", full=1.1, light=1.0, anomaly=1.51, share=0.15), "at most 1/7"),
        ([idle(1.011, 1.02)], "low at most 1.01"),
        ([idle(0.99, 1.04)], "high at most 1.03"),
    ],
)
def test_each_bar_fails_by_itself_and_says_what_was_measured(rows, said):
    lines = recorder.missed(rows)
    assert len(lines) == 1
    assert said in lines[0]
    assert rows[0]["subject"] in lines[0]


def test_the_share_of_anomaly_counts_only_where_anomaly_adds_more_than_half():
    rows = rows_of("in-place", full=1.45, light=1.0, anomaly=1.5, share=0.9)
    assert recorder.missed(rows) == []


def test_every_step_of_a_program_has_its_bars():
    bars = {(bar.subject, bar.way): bar.most for bar in recorder.BARS}
    for name, subject in peers.SUBJECTS.items():
        if subject.group == "op":
            continue
        most = 1.03 if subject.group == "large" else 1.25
        assert 1.0 < bars[name, "light"] <= bars[name, "full"] <= most
        if subject.ways is not None:
            assert {"nothing", "anomaly", "full", "light"} <= set(subject.ways)


def test_rows_are_medians_of_the_rounds_own_ratios():
    seconds = {
        "nothing": tuple(float(k) for k in range(1, 10)),
        "anomaly": tuple(4.0 * k for k in range(1, 10)),
        "full": tuple(1.5 * k for k in range(1, 10)),
    }
    rows = recorder.rows_of(
        peers.SUBJECTS["mlp"], timing.Comparison(seconds, 3), list(seconds), threads=2, clock="cpu"
    )
    full = rows[2]
    assert full["times nothing"] == full["low"] == full["high"] == 1.5
    assert full["added us"] == statistics.median(0.5 * k for k in range(1, 10)) * 1e6
    assert full["of anomaly's added"] == full["share low"] == full["share high"] == 0.5 / 3
    assert [full[key] for key in ("rounds", "calls", "threads", "clock")] == [9, 3, 2, "cpu"]
    assert rows[0]["of anomaly's added"] is None


def test_a_block_enters_the_way_and_makes_some_calls_before_the_clock():
    log = []

    @contextlib.contextmanager
    def context():
        log.append("enter")
        yield
        log.append("leave")

    def call():
        if log[-1] != "call":
            log.append("call")

    way = peers.Way("w", context)
    with recorder.block(way, call, 1e-3)():
        log.append("clock")
    with recorder.block(way, call, 0.0)():  # a large step: none
        log.append("clock")
    assert log == ["enter", "call", "clock", "leave", "enter", "clock", "leave"]


def test_a_way_that_is_dear_to_leave_is_compared_with_nothing_alone(monkeypatch):
    compared = []

    def compare(cases, **_):
        compared.append(list(cases))
        return timing.Comparison(dict.fromkeys(cases, (1.0,) * 6), 1)

    monkeypatch.setattr(timing, "compare", compare)
    subject = peers.Subject("s", "small", lambda: int, 1e-9, 1e-9)
    rows = recorder.measure(
        subject, ["nothing", "anomaly", "profiler"], scale=1.0, threads=1, clock="wall"
    )
    assert compared == [["nothing", "anomaly"], ["nothing", "profiler"]]
    assert [row["way"] for row in rows] == [
        peers.WAYS[name].label for name in ("nothing", "anomaly", "profiler")
    ]


@pytest.mark.parametrize("name", ["functional", "differentiable", "in-place", "mlp"])
def test_each_way_runs_and_leaves_nothing_behind(name):
    step = peers.SUBJECTS[name].build()
    before = threading_state()
    for way in peers.WAYS.values():
        with way.context():
            step()
        assert threading_state() == before, way.label


def threading_state():
    """What a way could leave on: anomaly mode, a dispatch mode, the profiler's callbacks."""
    return (
        torch.is_anomaly_enabled(),
        torch._C._len_torch_dispatch_stack(),
        sys.getprofile(),
        torch.autograd._profiler_enabled(),
        torch._C._dispatch_tls_local_include_set().raw_repr(),
    )


def test_the_stack_mode_takes_stacks_of_writes_only():
    mode = peers.StackMode()
    with mode:
        x = torch.ones(2) * 2
        assert mode.last is None
        x.add_(1)
    assert "x.add_(1)" in [frame.line for frame in mode.last]


def test_the_picture_holds_the_numbers_of_the_json(tmp_path):
    path = tmp_path / "recorder.json"
    path.write_text(json.dumps({"benchmark": "recorder", "machine": MACHINE, "rows": GOOD}))
    done = script("--plot", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"written: {tmp_path / 'recorder.png'}\n"
    assert (tmp_path / "recorder.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["recorder.json", "recorder.png"]

    figure = plot_recorder.draw(GOOD, MACHINE)
    titles = [*plot_recorder.PANELS.values(), plot_recorder.BY_SIZE]
    assert [ax.get_title() for ax in figure.axes] == titles
    small = figure.axes[1]
    ways = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert ways == [ANOMALY, FULL, LIGHT]  # nothing is the axis
    (markers, *_) = small.containers[0]
    assert dict(zip(ways, markers.get_xdata(), strict=True)) == pytest.approx(
        {ANOMALY: 300.0, FULL: 14.0, LIGHT: 9.0}
    )
    assert {"4×", "1.14×", "1.09×"} <= {text.get_text() for text in small.texts}


def test_the_bars_of_the_picture_are_the_intervals():
    rows = [timed("mlp", "nothing", 1.0), timed("mlp", "full", 1.2, low=1.15, high=1.3)]
    figure = plot_recorder.draw(rows, MACHINE)
    (container,) = figure.axes[0].containers
    (bar,) = container[2]
    ((left, _), (right, _)) = bar.get_segments()[0]
    assert (left, right) == pytest.approx((15.0, 30.0))


def test_a_picture_of_something_else_is_one_line(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("[]")
    done = script("--plot", path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("recorder.py: error: no picture: ")
    assert not (tmp_path / "other.png").exists()


def test_the_short_table_has_a_line_for_each_way():
    memory = recorder.row(group="memory", subject="a write", way="own", bytes_per_event=96.4)
    table = plot_recorder.summary([*GOOD, memory]).splitlines()
    heads = [peers.SUBJECTS[name].label for name in ("mlp", "differentiable", "functional", "gpt2")]
    assert table[0] == f"|  | {' | '.join(heads)} |"
    assert table[2].startswith(f"| {NOTHING} | 100.00 µs |")
    assert table[4].startswith(f"| {FULL} | 1.14 [1.14, 1.14] | 2 [2, 2] |")
    assert table[-1] == "| own | 96 bytes |"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--subjects", "mlp,gpt3"], "no 'gpt3'; there are idle, memory, functional, "),
        (["--ways", "magic"], "no 'magic'; there are nothing, anomaly, "),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_a_wrong_word_is_one_line(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recorder.py", *words])
    with pytest.raises(SystemExit) as ended:
        recorder.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_idle_is_measured_in_forks_of_a_process_without_gradext():
    done = child("idle", "in-place", 6)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["ratios"]) == list(found["seconds"]) == list(recorder_child.STATES)
    assert found["ratios"][recorder_child.ALONE] == [1.0] * 6
    assert all(len(values) == 6 for values in found["ratios"].values())
    assert all(0.2 < value < 5 for values in found["ratios"].values() for value in values)
    assert all(1e-7 < value < 1e-3 for values in found["seconds"].values() for value in values)
    assert found["calls"] > 100


@pytest.mark.parametrize("event", recorder_child.EVENTS)
def test_an_event_takes_the_memory_that_the_recorder_says(event):
    done = child("memory", event, 20_000)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["events"] > 0
    # The account is for a tensor that is gone; the event of a living one holds only itself.
    # Beside such tensors the heap grows and shrinks by a megabyte or two of its own.
    large = "400 kB" in event
    least, most = (-1.0, 2.25) if large else (0.1, 1.25)
    account = found["account"]
    assert least * account < found["bytes"] / found["events"] < most * account
