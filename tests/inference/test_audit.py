"""gradext.audit_inference: every named check where it passes and where it does not, exactly."""

from __future__ import annotations

import json
import random
import sys

import numpy
import pytest
import subjects
import torch
from audits import NORMAL, X, at, audit, lines_of, statuses
from subjects import line
from torch import nn

import gradext
from gradext.inference_audit.report import CHECKS

# --- the report ----------------------------------------------------------------------------------


def test_a_clean_module_passes_every_check():
    report = gradext.audit_inference(subjects.Clean(), X.clone())
    assert report.verdict == "runs under inference_mode and leaves nothing behind"
    assert statuses(report) == dict.fromkeys(CHECKS, "pass")
    assert report.ok
    assert report.failed == ()
    assert report.isolation == "process"
    assert report.subject == "Clean"
    assert [(check.name, check.message) for check in report.checks] == [
        ("runs", "runs under inference_mode"),
        ("same outputs", "1 tensor equal to the bit with those under no_grad"),
        ("writes", "writes to no input, parameter or buffer, nor to what else it holds"),
        (
            "parameters and buffers",
            "no parameter or buffer is an inference tensor afterwards",
        ),
        ("kept tensors", "nothing else keeps an inference tensor after the block"),
        ("train step", "works; 2 gradients equal to the bit with those of a fresh copy"),
        ("no_grad afterwards", "a call under no_grad works after it"),
        ("deepcopy", "copy.deepcopy works after it"),
        ("state_dict", "state_dict() and load_state_dict() of it work after it"),
        ("to", ".to(dtype) and back works after it"),
        ("save and load", "torch.save and torch.load of the whole object work after it"),
        ("threads", "equal outputs in another thread and in two threads at once"),
    ]
    assert report.not_checked == (
        "other inputs and branches than those of this call",
        "CUDA: every run was on the CPU, in a process with one thread for kernels",
        "tensors that only C++ code or another process holds",
    )


def test_the_text_has_a_line_per_check_and_the_lines_of_code(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    report = audit(subjects.Count())
    text = str(report)
    assert text.isascii()
    shown = text.splitlines()
    head = f"inference audit of Count (torch {torch.__version__}, each run in a process of its own)"
    assert shown[:3] == [
        head,
        "verdict: runs under inference_mode and leaves nothing behind; writes in place to 1 buffer",
        "",
    ]
    assert "pass  runs: runs under inference_mode" in shown
    start = shown.index(
        "WARN  writes: writes in place to 1 buffer: `model.calls`, as it does under no_grad"
    )
    column = ":9" if sys.version_info >= (3, 11) else ""  # 3.10 keeps none
    assert shown[start + 1].endswith(f"subjects.py:{line('COUNTED')}{column} in Count.forward")
    assert shown[start + 2] == f"      {line('COUNTED')} | self.calls.add_(1)  #: COUNTED"
    number = " " * len(str(line("COUNTED")))
    assert shown[start + 3] == f"      {number} = here: version 0 -> 1 (aten::add_)"
    assert shown[-4] == "not checked:"


def test_to_json_is_plain_data_and_complete():
    report = audit(subjects.Rope())
    data = json.loads(json.dumps(report.to_json()))
    assert list(data) == [
        *("gradext", "torch", "subject", "ok", "verdict", "isolation", "checks", "not_checked"),
    ]
    assert data["ok"] is False
    assert [check["name"] for check in data["checks"]] == list(CHECKS)
    train = next(check for check in data["checks"] if check["name"] == "train step")
    assert train["status"] == "fail"
    assert train["paths"] == ["model._cache[16]"]
    assert train["sites"][0]["line"] == line("ROPE USED")


def test_checks_are_found_by_name():
    report = audit(subjects.Clean())
    assert report["runs"].status == "pass"
    with pytest.raises(KeyError, match="'speed' is no check; the checks are runs, same outputs"):
        report["speed"]


def test_what_cannot_be_called_is_refused_in_one_line():
    expected = (
        "gradext.audit_inference: expected a module or a function, got builtins.int, "
        "which cannot be called"
    )
    with pytest.raises(TypeError) as raised:
        gradext.audit_inference(3)
    assert str(raised.value) == expected


# --- runs ----------------------------------------------------------------------------------------


def test_what_runs_under_no_grad_only_does_not_run():
    report = audit(subjects.Score())
    check = report["runs"]
    assert check.status == "fail"
    assert check.message.startswith("RuntimeError: ")
    assert check.message.endswith(" (it runs under no_grad)")
    assert lines_of(check) == [at("SCORE FAILS")]
    assert report.verdict == f"does not run under inference_mode: {check.message}"
    assert {s for n, s in statuses(report).items() if n != "runs"} == {"skipped"}
    assert report["threads"].message == "it does not run"


def test_what_runs_under_no_mode_is_not_the_modes_fault():
    check = audit(subjects.Broken())["runs"]
    assert check.status == "fail"
    assert check.message == (
        "ValueError: no such mode: 'fancy' (under no_grad it fails as well, "
        "so the mode is not the cause)"
    )
    assert lines_of(check) == [at("BROKEN")]


def test_a_process_that_dies_or_hangs_is_reported():
    died = audit(subjects.Dies())["runs"]
    assert died.message == (
        "the run under inference_mode ended early: the process that ran it ended with exit code 3"
    )
    hung = audit(subjects.Sleeps(), seconds=1)["runs"]
    assert hung.message == (
        "the run under inference_mode ended early: it did not finish within 1 s"
    )


# --- same outputs --------------------------------------------------------------------------------


def test_outputs_that_differ_fail():
    check = audit(subjects.Asks(1.0))["same outputs"]
    assert check.status == "fail"
    assert check.paths == ("output",)
    assert check.message.startswith("`output` differs by up to ")
    assert check.message.endswith(
        "(1 of the value) from what it is under no_grad; two no_grad runs agree"
    )


def test_rounding_is_a_warning():
    check = audit(subjects.Asks(2e-7))["same outputs"]
    assert check.status == "warn"
    assert "rounding, as other kernels give it" in check.message


def test_what_no_seed_reaches_is_no_difference_of_the_mode():
    check = audit(subjects.Noise())["same outputs"]
    assert check.status == "warn"
    assert check.message.endswith(": the call is not deterministic")


@pytest.mark.parametrize("fork", [True, False])
def test_dropout_draws_the_same_in_each_run(fork):
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    report = audit(net, fork=fork)
    assert report["same outputs"].status == "pass"
    assert report["train step"].status == "pass"
    assert report["threads"].message == (
        "works in another thread, with equal outputs; calls at once were not compared, "
        "as it draws random numbers"
    )


@pytest.mark.parametrize(
    "draw", [random.random, numpy.random.rand, lambda: torch.rand(())], ids=["py", "numpy", "torch"]
)
def test_every_generator_is_set_to_the_same_state(draw):
    report = audit(lambda x: x * float(draw()), X.clone())
    assert report["same outputs"].status == "pass"
    assert report["threads"].message.endswith("as it draws random numbers")


def test_outputs_are_compared_as_trees():
    def several(x):
        kept = {"a": [x, (x + 1, "text")], "n": 3}
        return kept, subjects.Clean

    assert audit(several)["same outputs"].message == (
        "2 tensors equal to the bit with those under no_grad"
    )

    def deep(x):
        extra = 1 if torch.is_inference_mode_enabled() else 0
        return {"a": [x, (x + 1, f"text {extra}")]}

    check = audit(deep)["same outputs"]
    assert check.status == "fail"
    assert check.paths == ("output['a'][1][1]",)
    assert check.message.startswith("`output['a'][1][1]` is 'text 1' and 'text 0'")


# --- writes --------------------------------------------------------------------------------------


def test_a_buffer_written_in_place():
    check = audit(subjects.Count())["writes"]
    assert check.status == "warn"
    assert check.paths == ("model.calls",)
    assert lines_of(check) == [at("COUNTED")]
    assert (check.sites[0].op, check.sites[0].version_before, check.sites[0].version_after) == (
        *("aten::add_", 0, 1),
    )


def test_an_input_written_in_place():
    check = audit(subjects.zeroes_its_input)["writes"]
    assert check.message == "writes in place to 1 input: `x`, as it does under no_grad"
    assert lines_of(check) == [at("INPUT WRITTEN")]
    assert check.fix == "copy first where the caller must not see it: `x = x.clone()`"


def test_a_write_that_no_counter_counts():
    check = audit(subjects.goes_around)["writes"]
    assert check.message == (
        "writes in place to 1 input: `x`, as it does under no_grad; no counter saw the write to `x`"
    )


# --- what is left behind -------------------------------------------------------------------------


@pytest.mark.parametrize("fork", [True, False])
def test_a_lazy_rotary_cache_is_named_and_breaks_training(fork):
    report = audit(subjects.Decoder(), fork=fork)
    path = "model.layers[0]._cache[16]"
    assert report.isolation == ("process" if fork else "copy")
    assert report.verdict == (
        f"runs, but leaves 1 inference tensor in `{path}`; training afterwards fails"
    )
    kept = report["kept tensors"]
    assert (kept.status, kept.paths) == ("warn", (path,))
    assert kept.message == f"1 inference tensor kept after the block: `{path}`"
    assert kept.fix == (
        f"keep a copy that is no inference tensor: `{NORMAL} {path} = {path}.clone()`, "
        f"or put that `with` around subjects.py:{line('ROPE BORN')}"
    )
    assert [d.code for d in kept.diagnoses] == ["GX204"]
    train = report["train step"]
    assert (train.status, train.paths) == ("fail", (path,))
    assert train.message == (
        "forward fails after the call: RuntimeError: Inference tensors cannot be saved for "
        f"backward; it met `{path}`"
    )
    assert lines_of(train)[0] == at("ROPE USED")
    assert report["parameters and buffers"].status == "pass"


def test_the_fix_of_a_kept_tensor_is_code_that_helps():
    model = subjects.Decoder()
    with torch.inference_mode():
        model(X)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        model(X)
    fix = audit(subjects.Decoder())["kept tensors"].fix
    exec(fix.split("`")[1], {"torch": torch, "model": model})
    model(X).sum().backward()
    assert model.layers[0].up.weight.grad is not None


def test_what_another_call_has_filled_is_not_left_behind():
    rope = subjects.Rope()
    with torch.no_grad():
        rope(X)
    report = audit(rope)
    assert report["kept tensors"].status == "pass"
    assert report["train step"].status == "pass"


def test_a_replaced_buffer_is_an_inference_tensor():
    report = audit(subjects.Average())
    check = report["parameters and buffers"]
    assert (check.status, check.paths) == ("fail", ("model.mean",))
    assert check.message == (
        "1 inference tensor among them: `model.mean` is made under inference_mode"
    )
    assert check.fix == ("write into the buffer instead of replacing it: `model.mean.copy_(new)`")
    assert report["kept tensors"].status == "pass"
    assert lines_of(report["train step"])[0] == at("MEAN USED")
    state = report["state_dict"]
    assert state.status == "fail"
    assert "Inplace update to inference tensor outside InferenceMode" in state.message


def test_a_parameter_made_in_the_call():
    check = audit(subjects.Lazy())["parameters and buffers"]
    assert (check.status, check.paths) == ("fail", ("model.scale",))
    assert check.fix == f"make it in __init__, or under `{NORMAL}`"


def test_a_model_that_was_built_under_inference_mode():
    with torch.inference_mode():
        net = subjects.Clean()
    check = audit(net)["parameters and buffers"]
    assert check.status == "fail"
    assert check.paths == ("model.up.weight", "model.up.bias")
    assert check.message == (
        "2 inference tensors among them: `model.up.weight`, `model.up.bias` are so before the call"
    )


def test_an_lru_cache():
    report = audit(subjects.masked, X.clone(), torch.ones(4, requires_grad=True))
    path = "subjects.make_mask.<lru_cache>"
    assert report["kept tensors"].paths == (path,)
    assert report["kept tensors"].fix == (
        "`subjects.make_mask.cache_clear()` after the block, or fill the cache under no_grad "
        "before it"
    )
    train = report["train step"]
    assert lines_of(train)[0] == at("MASK USED")
    assert train.paths == (path,)


def test_a_module_global():
    report = audit(subjects.from_tables, X.clone(), torch.ones(4, requires_grad=True))
    assert report["kept tensors"].paths == ("subjects.TABLES[16]",)
    assert report["train step"].status == "fail"
    assert subjects.TABLES == {}


def test_a_closure_and_an_input_that_wants_gradients():
    report = audit(subjects.closing_over())
    assert report["kept tensors"].paths == ("step.<closure>.kept[0]",)
    train = report["train step"]
    assert (train.status, train.paths) == ("fail", ("step.<closure>.kept[0]",))


def test_what_is_kept_where_no_path_leads_is_counted_all_the_same():
    report = audit(subjects.hides)
    kept = report["kept tensors"]
    assert (kept.status, kept.paths) == ("warn", ("<unknown holder>",))
    assert lines_of(kept) == [at("HIDDEN BORN")]
    assert kept.fix == f"make what is kept outside the mode: `{NORMAL}` around " + (
        f"subjects.py:{line('HIDDEN BORN')}"
    )
    assert not hasattr(json, "kept")


def test_in_this_process_what_was_left_in_globals_is_listed():
    try:
        report = audit(
            subjects.from_tables, X.clone(), torch.ones(4, requires_grad=True), fork=False
        )
        assert report.isolation == "copy"
        assert report["kept tensors"].message == (
            "1 inference tensor kept after the block: `subjects.TABLES[16]`; "
            "in this process too: `subjects.TABLES[16]`"
        )
        assert subjects.TABLES[16].is_inference()
        assert report.not_checked[1] == (
            "what it does to globals, closures and caches was not undone here: it ran on deep "
            "copies in this process (asked not to fork)"
        )
    finally:
        subjects.TABLES.clear()


# --- afterwards ----------------------------------------------------------------------------------


def test_a_cache_that_is_written_on_each_call_fails_outside():
    report = audit(subjects.Kv())
    check = report["no_grad afterwards"]
    assert check.status == "fail"
    assert "Inplace update to inference tensor outside InferenceMode" in check.message
    assert lines_of(check) == [at("KV WRITTEN")]
    assert lines_of(report["train step"])[0] == at("KV WRITTEN")
    assert report["train step"].paths == ("model.cache",)


def test_what_can_be_copied_and_saved_only_before():
    report = audit(subjects.Locks())
    for name in ("deepcopy", "save and load"):
        assert report[name].status == "fail"
        assert report[name].message == "TypeError: cannot pickle '_thread.lock' object"


def test_what_can_be_converted_only_before():
    check = audit(subjects.Converts())["to"]
    assert (check.status, check.message) == ("fail", "RuntimeError: cannot convert any more")


def test_what_never_worked_is_not_the_modes_fault():
    report = audit(subjects.Uncopyable())
    assert report.isolation == "process"
    check = report["save and load"]
    assert check.status == "skipped"
    assert check.message == (
        "does not work without inference_mode either: "
        "TypeError: cannot pickle '_thread.lock' object"
    )
    assert f"save and load: {check.message}" in report.not_checked
    assert report["train step"].paths == ("model._cache[16]",)


def test_a_train_step_where_there_is_nothing_to_train():
    report = audit(subjects.Whole())
    assert report["train step"].status == "skipped"
    assert report["train step"].message == (
        "no output carries a gradient under grad mode "
        "(whole numbers, or grad mode is switched off inside)"
    )
    report = audit(subjects.plain, torch.arange(4))
    assert report["train step"].message == (
        "no parameter and no floating-point input that could require grad"
    )
    assert report["state_dict"].message == "a function has none"


def test_after_a_method_without_gradients_it_is_the_module_that_is_trained():
    train = audit(subjects.Sampler().sample)["train step"]
    assert (train.status, train.paths) == ("fail", ("model._cache[16]",))
    assert lines_of(train) == [at("ROPE USED"), at("ROPE BORN")]
    train = audit(subjects.Encodes().encode, X.clone(), None)["train step"]
    assert (train.status, train.message) == (
        "skipped",
        "forward of the module with `x`, `y` does not work on a fresh copy: "
        "ValueError: y is needed",
    )
    train = audit(subjects.CleanSampler().sample, X.clone(), 3)["train step"]
    assert (train.status, train.message) == (
        "pass",
        "works (forward of the module with `x`); 2 gradients equal to the bit with those of a "
        "fresh copy",
    )


# --- threads -------------------------------------------------------------------------------------


def test_threads_of_its_own_are_outside_the_mode():
    check = audit(subjects.Threads())["threads"]
    assert (check.status, check.paths) == ("warn", ("output",))
    assert check.message == (
        "it starts 1 thread of its own, and inference_mode does not reach into them: "
        "`output` is no inference tensor"
    )
    assert lines_of(check) == [at("THREAD STARTED")]


def test_what_works_in_one_thread_only():
    check = audit(subjects.MainOnly())["threads"]
    assert check.status == "fail"
    assert check.message == (
        "a call in another thread fails under inference_mode: RuntimeError: only in the main thread"
    )
    assert lines_of(check) == [at("MAIN ONLY")]


def test_calls_at_once_that_disturb_each_other():
    check = audit(subjects.Shares())["threads"]
    assert check.status == "fail"
    assert check.message.startswith("of calls in two threads at once one differs: `output` ")


def test_state_that_changes_with_each_call():
    report = audit(subjects.Steps())
    assert report["same outputs"].status == "pass"
    assert report["threads"].status == "warn"
    assert report["threads"].message.startswith("a second call gives another result (`output` ")
