"""compare_modes: what it times, what it concludes, what it leaves as it was."""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import gradext
from gradext.mode_costs import clocks, measure, timing
from gradext.mode_costs.comparison import ModeComparison
from gradext.mode_costs.measure import MODES

ALL = tuple(MODES)


class FakeClock:
    """Seconds that a test gives out by mode, in place of a clock; the call is made all the same."""

    launch_seconds = None
    truth: dict[str, float]
    noise: random.Random

    def __init__(self, function):
        self.function = function

    def block(self, calls):
        self.function()
        return calls * self.truth[mode_now()] * self.noise.lognormvariate(0, 0.05)


def mode_now():
    if torch.is_inference_mode_enabled():
        return "inference_mode"
    return "grad" if torch.is_grad_enabled() else "no_grad"


@pytest.fixture
def synthetic(monkeypatch):
    """Times of which the ratios are known: 2 us, 1.1 us and 1 us, with 5 % of noise."""
    FakeClock.truth = {"grad": 2e-6, "no_grad": 1.1e-6, "inference_mode": 1e-6}
    FakeClock.noise = random.Random(7)
    monkeypatch.setattr(clocks, "clock_of", lambda device, function: FakeClock(function))
    return FakeClock


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def quick(fn, *args, **options):
    return gradext.compare_modes(fn, *args, **{"seconds": 0.05, **options})


def test_known_ratios_come_out(synthetic, model):
    found = quick(model, torch.ones(2, 8), modes=("grad", "no_grad", "inference_mode"), seconds=1)
    for mode, truth in (("grad", 2.0), ("no_grad", 1.1)):
        ratio = found.ratio(mode)
        assert ratio.low <= truth <= ratio.high
        assert ratio.high - ratio.low < 0.1
    assert found["grad"].time.value == pytest.approx(2e-6, rel=0.03)
    assert found.ratio("grad", "no_grad").value == pytest.approx(2 / 1.1, rel=0.03)
    assert found.difference("no_grad").startswith("+")


def test_equal_times_are_no_difference(synthetic, model):
    synthetic.truth = dict.fromkeys(synthetic.truth, 1e-6)
    found = quick(model, torch.ones(2, 8), modes=("grad", "no_grad", "inference_mode"), seconds=20)
    # 95 % intervals: over the seeds one in twenty excludes 1.0; this seed's two do not.
    assert found.difference("no_grad") == "no difference measurable"
    assert "grad over inference_mode: no difference measurable" in str(found)


def test_a_label_is_shown_as_it_is(synthetic, model):
    found = quick(model, torch.ones(2, 8), modes=("no_grad",), label="x[mask] [/a]", counts=False)
    assert "x[mask] [/a]" in str(found)


def test_no_time_at_all_is_the_fewest_rounds(synthetic, model):
    told = []
    found = quick(model, torch.ones(2, 8), modes=("no_grad",), seconds=0, progress=told.append)
    assert found.rounds == timing.MIN_ROUNDS
    assert told[-1] == 1.0


def test_copies_of_inputs_are_inputs(model):
    x = torch.ones(2, 8)
    given, copied = (
        quick(lambda x: x * model[0].bias, x, modes=("grad",), inputs=inputs)["grad"].counts
        for inputs in ("given", "copied")
    )
    assert given.saved_tensors == copied.saved_tensors == 1
    assert given.saved_bytes == copied.saved_bytes == 0


def test_the_interval_covers_the_truth_as_often_as_it_says(synthetic, model):
    x, covered, runs = torch.ones(2, 8), 0, 60
    for seed in range(runs):
        synthetic.noise = random.Random(seed)
        found = quick(
            model, x, modes=("no_grad", "inference_mode"), seconds=0.01, counts=False, width=1e-9
        )
        covered += found.ratio("no_grad").holds(1.1)
    assert covered >= 0.88 * runs  # 95 % of 60 is 57; below 53 has a chance of 1 in 1000


def test_it_stops_when_the_interval_is_narrow_enough(synthetic, model):
    x, names = torch.ones(2, 8), ("no_grad", "inference_mode")
    wide = quick(model, x, modes=names, seconds=20, width=0.2, counts=False)
    narrow = quick(model, x, modes=names, seconds=20, width=0.02, counts=False)
    assert wide.rounds < narrow.rounds < timing.MAX_ROUNDS
    ratio = narrow.ratio("no_grad")
    assert ratio.high - ratio.low <= 0.02 * ratio.value


def test_counts_of_each_mode(model):
    x = torch.ones(2, 8)
    found = quick(model, x)
    grad, no_grad, inference = (
        found[mode].counts for mode in ("grad", "no_grad", "inference_mode")
    )
    assert grad.nodes == 5  # two addmm, two transposed weights, one relu
    assert grad.saved_tensors > 0
    assert (no_grad.nodes, no_grad.saved_tensors) == (0, 0)
    # The weights are normal tensors, so views of them are tracked even under inference_mode (there
    # those within an op as well: nothing above it excludes the key).
    assert grad.views == no_grad.views == 2
    assert inference.views >= 2
    assert grad.inference_tensors == no_grad.inference_tensors == 0
    assert inference.inference_tensors > 0
    assert found["detached"].counts.nodes == found["no_grad_frozen"].counts.nodes == 0


def test_frozen_parameters_are_put_back(model):
    frozen = model[0].bias.requires_grad_(False)
    before = [(id(p), p.requires_grad, p._version) for p in model.parameters()]
    quick(model, torch.ones(2, 8))
    assert [(id(p), p.requires_grad, p._version) for p in model.parameters()] == before
    assert not frozen.requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: m.forward,
        lambda m: functools.partial(m),
        lambda m: lambda x: m(x),
        lambda m: lambda x, model=m: model(x),
    ],
    ids=["module", "method", "partial", "closure", "default"],
)
def test_parameters_are_found(model, wrap):
    seen = []
    model[0].register_forward_hook(
        lambda *_: seen.append(any(p.requires_grad for p in model.parameters()))
    )
    quick(wrap(model), torch.ones(2, 8), modes=("detached",), counts=False)
    assert set(seen) == {False}


def test_detached_means_that_no_graph_is_made():
    w = torch.ones(3, requires_grad=True)
    found = quick(lambda x: x * 2, w, modes=("grad", "detached"), over="detached")
    assert (found["grad"].counts.nodes, found["detached"].counts.nodes) == (1, 0)
    assert w.requires_grad


def test_copied_inputs_are_inference_tensors_in_that_mode_only():
    seen = {}

    def call(x):
        seen[mode_now()] = (x.is_inference(), x.requires_grad, x is given)

    given = torch.ones(3, requires_grad=True)
    quick(call, given, modes=("grad", "no_grad", "inference_mode"), inputs="copied")
    assert seen == {
        "grad": (False, True, False),
        "no_grad": (False, True, False),
        "inference_mode": (True, False, False),
    }
    quick(call, given, modes=("inference_mode",))
    assert seen["inference_mode"] == (False, True, True)


def test_a_mode_in_which_the_call_raises_says_so():
    def trains(x):
        (x * x).sum().backward()

    found = quick(trains, torch.ones(3, requires_grad=True))
    assert found["no_grad"].time is None
    assert found["no_grad"].error.startswith("RuntimeError: element 0 of tensors")
    assert found["grad"].time is not None
    assert found.over == "grad"  # inference_mode cannot be the baseline
    assert "no_grad: not timed: RuntimeError: element 0" in str(found)
    with pytest.raises(ValueError, match="no_grad was not timed: RuntimeError: element 0"):
        found.ratio("no_grad")


def test_where_it_raises_in_every_mode_that_is_an_error():
    with pytest.raises(ValueError, match=r"raises in every mode .*KeyError: 'mine'"):
        quick(lambda: {}["mine"])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"modes": ("fast",)}, ValueError, "no mode is called 'fast'; there are grad, no_grad"),
        ({"modes": ()}, ValueError, "modes: expected some of grad"),
        ({"modes": "grad"}, ValueError, "modes: expected some of grad"),
        ({"over": "no_grad", "modes": ("grad",)}, ValueError, "over: 'no_grad' is not among"),
        ({"inputs": "cloned"}, ValueError, "inputs is 'given' or 'copied', not 'cloned'"),
    ],
)
def test_bad_arguments(options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        quick(lambda: None, **options)


def test_what_is_no_function():
    with pytest.raises(TypeError, match="expected a function or a module, got Tensor"):
        gradext.compare_modes(torch.ones(2))


def test_threads_are_put_back():
    seen = []
    before = torch.get_num_threads()
    found = quick(lambda: seen.append(torch.get_num_threads()), threads=1, counts=False)
    assert (set(seen), found.threads, torch.get_num_threads()) == ({1}, 1, before)


def test_json_round_trip(tmp_path, model):
    found = quick(model, torch.ones(2, 8), label="small")
    found.save(tmp_path / "found.json")
    read = ModeComparison.load(tmp_path / "found.json")
    assert read == ModeComparison.from_dict(json.loads(json.dumps(found.to_dict())))
    assert str(read) == str(found)
    assert read.ratio("grad", "no_grad") == found.ratio("grad", "no_grad")


def test_csv_has_a_line_a_mode(tmp_path, model):
    found = quick(model, torch.ones(2, 8))
    found.save(tmp_path / "found.csv")
    head, *lines = (tmp_path / "found.csv").read_text().splitlines()
    assert head.startswith("mode,seconds value,seconds low,seconds high,ratio value")
    assert [line.split(",")[0] for line in lines] == list(ALL)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99}'])
def test_a_file_that_is_something_else(tmp_path, text):
    (tmp_path / "no.json").write_text(text)
    with pytest.raises(ValueError, match=r"no\.json holds no mode comparison of gradext"):
        ModeComparison.load(tmp_path / "no.json")


def test_against_an_earlier_result(synthetic, tmp_path, model):
    names = ("no_grad", "inference_mode")
    quick(model, torch.ones(2, 8), modes=names).save(tmp_path / "old.json")
    synthetic.truth = {**synthetic.truth, "no_grad": 3.3e-6}
    text = quick(model, torch.ones(2, 8), modes=names).against(tmp_path / "old.json")
    lines = text.splitlines()
    assert any(re.match(r"no_grad: (2\.\d+|3(\.\d+)?)× \[", line) for line in lines)
    assert "inference_mode: no difference measurable" in lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"processor": "another"}, "processor 'another' and "),
        ({"gpu": "H100"}, "gpu 'H100' and None"),
    ],
)
def test_against_another_machine_is_refused(tmp_path, model, change, said):
    found = quick(model, torch.ones(2, 8), modes=("grad",), counts=False)
    data = found.to_dict()
    data["machine"] |= change
    (tmp_path / "old.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="different machines make no ratio") as caught:
        found.against(tmp_path / "old.json")
    assert said in str(caught.value)


def test_against_other_threads_is_refused(model):
    x = torch.ones(2, 8)
    one = quick(model, x, modes=("grad",), threads=1, counts=False)
    two = quick(model, x, modes=("grad",), threads=2, counts=False)
    with pytest.raises(ValueError, match="threads 1 and 2"):
        two.against(one)


def test_a_recording_is_noted(model):
    with gradext.record():
        found = quick(model, torch.ones(2, 8), modes=("grad",), counts=False)
    assert found.notes == ("a recording is on: the times contain what recording costs",)
    assert "note: a recording is on" in str(found)


def test_plot(tmp_path, model):
    figure = quick(model, torch.ones(2, 8)).plot(tmp_path / "modes.png")
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ALL)
    assert len(ax.patches) == len(ALL)
    assert (tmp_path / "modes.png").read_bytes().startswith(b"\x89PNG")


def test_progress_is_told(model):
    told = []
    quick(model, torch.ones(2, 8), modes=("grad",), counts=False, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_the_bar_goes_to_stderr_and_only_where_it_is_asked_for(capfd, model):
    quick(model, torch.ones(2, 8), modes=("grad",), counts=False)
    assert capfd.readouterr() == ("", "")
    quick(model, torch.ones(2, 8), modes=("grad",), counts=False, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "timing the modes" in err


def test_over_limit():
    with pytest.raises(measure.OverLimit, match=r"a call takes 0\.1 s and 8 are needed"):
        measure.measure(
            lambda mode: lambda: __import__("time").sleep(0.1), modes=("grad",), limit=0.5
        )


def test_importing_gradext_imports_no_benchmark_tools():
    program = (
        "import sys, gradext; gradext.compare_modes;"
        "print([m for m in ('torch.utils.benchmark', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.cuda
def test_cuda_graphs_are_rows_of_their_own():
    model = nn.Linear(8, 8, device="cuda")
    found = quick(model, torch.ones(2, 8, device="cuda"), modes=("no_grad", "inference_mode"))
    assert found.device.startswith("cuda")
    for mode in ("no_grad", "inference_mode"):
        assert found[mode].bound in ("CPU", "GPU")
        assert found[f"{mode}, CUDA graph"].time is not None
