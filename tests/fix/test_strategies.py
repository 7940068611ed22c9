"""What strategies propose for kinds of faults, on the text alone; the runs are in other files."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from typing import Any

import pytest

from gradext.rules.rewrite import strategies
from gradext.rules.rewrite.strategies.case import Case, Place, Sources
from gradext.rules.rewrite.strategies.copies import writes_unrecorded

PATH = "<string>"


def case_of(
    text: str,
    code: str,
    culprits: dict[int, str],
    victims: dict[int, str] | None = None,
    **more: Any,
) -> Case:
    """A case; the line numbers are those of the dedented text, with the labels they get."""
    function = more.get("function", "<module>")

    def site(line: int, label: str) -> dict[str, object]:
        return {"file": PATH, "line": line, "function": function, "label": label}

    diagnosis = {
        "code": code,
        "message": more.get("message", ""),
        "culprits": [site(*pair) for pair in culprits.items()],
        "victims": [site(*pair) for pair in (victims or {}).items()],
    }
    failed = more.get("failed")
    at = [{"file": PATH, "line": failed, "function": function}] if failed else []
    sources = Sources({}, lambda path: True)
    sources.given[PATH] = textwrap.dedent(text).lstrip("\n").encode()
    return Case.of(diagnosis, at, sources)


def patches(case: Case) -> dict[str, str]:
    return {
        found.title: case.sources.patched(found)[PATH].decode()
        for found in strategies.propose(case)
    }


def changed(case: Case, words: str) -> list[str]:
    """The lines that the one candidate with these words in its title adds."""
    found = [text for title, text in patches(case).items() if words in title]
    assert len(found) == 1, patches(case)
    before = case.sources.given[PATH].decode().splitlines()
    return [line for line in found[0].splitlines() if line not in before]


FREED = "The graph reaches AddBackward0 of an earlier one: {}, was used again with its history."


@pytest.mark.parametrize(
    ("body", "held", "expected"),
    [
        ("h = cell(x, h)", "`h`, a global variable", ["    h = h.detach()"]),
        ("net.bank.append(z)", "`net.bank[0]`, an entry of `net.bank`", None),
        ("net(x)", "`net.lif.v`, a buffer of Lif", ["    net.lif.v = net.lif.v.detach()"]),
    ],
)
def test_what_is_carried_is_cut_after_the_backward(
    body: str, held: str, expected: list[str] | None
) -> None:
    text = f"net = Net()\nfor x in data:\n    {body}\n    loss.backward()\n"
    case = case_of(
        text, "GX302", {3: "leads back", 4: "this backward() freed the graph"}, failed=4,
        message=FREED.format(held),
    )  # fmt: skip
    if expected is None:
        expected = [
            "    for key, entry in enumerate(net.bank):",
            "        net.bank[key] = entry.detach()",
        ]
    first = next(text for title, text in patches(case).items() if "after the backward" in title)
    assert [line for line in first.splitlines() if line not in text.splitlines()] == expected


@pytest.mark.parametrize(
    ("held", "loops"),
    [
        ("`states[self.index]`, an entry of `states`", ["states.items()", "enumerate(states)"]),
        ("`mem[0]`, an entry of `mem`", ["enumerate(mem)"]),
        ("`net.mem[i]`, an attribute of Net", ["net.mem.items()", "enumerate(net.mem)"]),
    ],
)
def test_entries_may_be_tensors_or_tuples_of_them(held: str, loops: list[str]) -> None:
    text = "net = Net()\nfor x in data:\n    net(x, states, mem)\n    loss.backward()\n"
    case = case_of(
        text, "GX302", {3: "leads back", 4: "this backward() freed the graph"}, failed=4,
        message=FREED.format(held),
    )  # fmt: skip
    made = [c for c in strategies.propose(case) if "holds after the backward" in c.title]
    assert [c.instead for c in made] == [False, *[True] * (2 * len(loops) - 1)]
    texts = [case.sources.patched(c)[PATH].decode() for c in made]
    entries = ["= entry.detach()\n", "= tuple(s.detach() for s in entry)\n"]
    for patched, (loop, entry) in zip(texts, itertools.product(loops, entries), strict=True):
        assert f"    for key, entry in {loop}:\n" in patched
        assert entry in patched


def test_what_two_losses_of_one_round_share_is_not_cut() -> None:
    text = """
    for x in data:
        h = enc(x)
        a(h).backward()
        b(h).backward()
    """
    culprits = {2: "`h` leads back", 4: "Mul uses it again", 3: "this backward() freed the graph"}
    message = FREED.format("`h`, a global variable")
    case = case_of(text, "GX302", culprits, failed=4, message=message)
    assert list(patches(case)) == ["keep the graph at <string>:3"]


def test_a_loss_of_another_optimizer_is_computed_from_values() -> None:
    text = """
    for real in data:
        fake = gen(z)
        loss = f(disc(real)) + f(disc(x=fake))
        loss.backward()
        {step}
        g(disc(fake)).backward()
    """
    culprits = {2: "`fake` leads back", 4: "this backward() freed the graph"}
    message = FREED.format("`fake`, a global variable")
    stepped = case_of(
        text.format(step="opt_d.step()"), "GX302", culprits, failed=6, message=message
    )
    assert changed(stepped, "compute the first loss from `fake.detach()`") == [
        "    loss = f(disc(real)) + f(disc(x=fake.detach()))"
    ]
    bound = text.format(step="opt_d.step(); fake = gen(z)")
    for other in (text.format(step="pass"), bound):
        case = case_of(other, "GX302", culprits, failed=6, message=message)
        assert not any("the first loss" in title for title in patches(case))


RESET = """
class Cell:
    def __init__(self):
        self.h = None
    def {name}(self{more}):
        {does}
    def forward(self, x):
        self.h = f(x, self.h)
        return self.h
net = Net()
for x in data:
    loss = net(x)
    loss.backward()
"""


@pytest.mark.parametrize(
    ("name", "more", "does", "is_called"),
    [
        ("clear", "", "self.h = None", True),
        ("start", ", size=3", "self.h = zeros(size)", True),
        ("cut", "", "self.h = self.h.detach()", True),
        ("step", "", "self.h = self.h * 2", False),
        ("start", ", size", "self.h = zeros(size)", False),
        ("state", "", "self.h = None; return self.h", False),
        ("other", "", "self.c = None", False),
    ],
)
def test_a_module_that_has_a_method_for_it_is_reset(
    name: str, more: str, does: str, is_called: bool
) -> None:
    text = RESET.format(name=name, more=more, does=does)
    case = case_of(
        text, "GX302", {7: "leads back", 12: "this backward() freed the graph"}, failed=12,
        message=FREED.format("`net.rnn.h`, an attribute of Cell"),
    )  # fmt: skip
    found = [t for title, t in patches(case).items() if title.startswith("call `net.rnn.")]
    assert len(found) == is_called
    assert all(t.endswith(f"    loss.backward()\n    net.rnn.{name}()\n") for t in found)


def test_what_is_made_once_is_made_in_the_innermost_round() -> None:
    text = """
    feat = f(w)
    for _ in range(2):
        for x in data:
            loss = feat * x
            loss.backward()
    """
    case = case_of(
        text, "GX302", {1: "`feat` leads back", 4: "Mul uses it again"}, failed=5,
        message=FREED.format("`feat`, a global variable"),
    )  # fmt: skip
    assert (
        "    for x in data:\n        feat = f(w)\n"
        in patches(case)["compute <string>:1 anew in each round"]
    )


def test_what_is_made_once_is_made_in_each_round() -> None:
    text = "feat = f(w)\nfor x in data:\n    loss = feat * x\n    loss.backward()\n"
    case = case_of(
        text, "GX302", {1: "`feat` leads back", 3: "Mul uses it again"}, failed=4,
        message=FREED.format("`feat`, a global variable"),
    )  # fmt: skip
    found = patches(case)
    assert (
        "for x in data:\n    feat = f(w)\n    loss"
        in found["compute <string>:1 anew in each round"]
    )
    assert not any("cut the history of `feat`" in title for title in found)


def test_a_sum_starts_anew_and_a_reset_cuts_the_history() -> None:
    text = "for t in tasks:\n    loss += f(t)\nloss.backward()\nfor t in tasks:\n    loss += f(t)\n"
    case = case_of(
        text, "GX302", {2: "leads back", 5: "Add uses it again"},
        message=FREED.format("`loss`, a running sum"),
    )  # fmt: skip
    assert changed(case, "start `loss` anew") == ["loss = 0"]
    assert "backward()\nloss = 0\nfor" in patches(case)["start `loss` anew before <string>:5"]
    reset = case_of("for b in buffers():\n    b.zero_()\n", "GX302", {2: "Zero uses it again"})
    assert changed(reset, "what is reset") == ["    b.zero_().detach_()"]


def test_state_of_an_object_is_cut_where_the_object_is_known() -> None:
    text = """
    class Env:
        def step(self, a):
            self.pos = self.pos + a
    env = Env()
    for _ in range(3):
        loss = env.step(a)
        loss.backward()
    """
    case = case_of(
        text, "GX302", {3: "leads back", 7: "this backward() freed the graph"}, failed=7,
        message=FREED.format("`self.pos`, an attribute of Env"),
    )  # fmt: skip
    first = next(t for name, t in patches(case).items() if "`env.pos` after the backward" in name)
    assert first.endswith("    loss.backward()\n    env.pos = env.pos.detach()\n")


GAN = """
fake = gen(z)
score = disc(fake)
loss_d = f(score)
loss_g = g(score)
loss_d.backward(retain_graph=True)
opt_d.step()
opt_g.zero_grad()
loss_g.backward()
opt_g.step()
"""


def test_two_optimizers_step_each_with_its_own_gradients() -> None:
    case = case_of(GAN, "GX101", {6: "writes"}, {2: "saves"}, failed=8)
    found = patches(case)
    own = next(text for title, text in found.items() if "each for its own leaves" in title)
    inputs = 'inputs=[p for g in {}.param_groups for p in g["params"]])\n'
    assert "loss_d.backward(retain_graph=True, " + inputs.format("opt_d") in own
    assert "loss_g.backward(" + inputs.format(
        "opt_g"
    ) + "opt_d.step()\nopt_g.step()" in own.replace("backward(, ", "backward(")
    # Moved alone, opt_d would step with what loss_g adds to its parameters.
    assert not any(title.endswith("below the backward() at <string>:8") for title in found)


def test_the_forward_is_computed_anew_below_the_step() -> None:
    case = case_of(GAN, "GX101", {6: "writes"}, {2: "saves"}, failed=8)
    found = patches(case)["compute <string>:2 anew before the backward() at <string>:8"]
    assert found == GAN.lstrip("\n").replace("loss_g = g(score)\n", "").replace(
        "loss_g.backward()", "score = disc(fake)\nloss_g = g(score)\nloss_g.backward()"
    )


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("for row in x:", ["    for index, row in enumerate(x):", "        row = x[index]"]),
        ("for k, row in enumerate(x):", ["        row = x[k]"]),
        (
            "for row, m in zip(x, ms):",
            ["    for index, (row, m) in enumerate(zip(x, ms)):", "        row = x[index]"],
        ),
    ],
)
def test_rows_that_are_written_are_taken_by_index(loop: str, expected: list[str]) -> None:
    text = f"def f(x, ms):\n    {loop}\n        row.mul_(2)\n    return x\n"
    case = case_of(text, "GX105", {3: "writes"}, {2: "unbind makes the view"}, function="f")
    assert changed(case, "by index") == expected


def test_rows_of_what_is_no_name_are_left() -> None:
    text = "for row in f(x):\n    row.mul_(2)\n    y = row\n"
    case = case_of(text, "GX105", {2: "writes"}, {1: "unbind makes the view"})
    assert not any("by index" in title for title in patches(case))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        ("h.data.clamp_(0, 1)", ["    h = h.clamp(0, 1)"]),
        ("h.data *= s", ["    h = h * (s)"]),
        ("h.data[m] = 0", ["    h = h.clone()", "    h[m] = 0"]),
    ],
)
def test_a_write_through_data_is_recorded(write: str, expected: list[str]) -> None:
    case = case_of(f"def f(h, m, s):\n    {write}\n    return h\n", "GX401", {2: "writes"})
    assert changed(case, "let autograd see") == expected
    assert writes_unrecorded(case)


def test_a_write_through_data_that_reaches_the_caller_only_is_left() -> None:
    case = case_of("def f(h):\n    h.data.clamp_(0, 1)\n", "GX401", {2: "writes"})
    assert not any("let autograd see" in title for title in patches(case))


def test_memory_with_a_second_name_is_copied_under_the_first() -> None:
    text = """
    class Rope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            mem = q.detach().numpy()
            mem[...] = 0
            return q
    """
    case = case_of(text, "GX401", {5: "changes the bytes"})
    assert changed(case, "gets a second name") == ["        q = q.clone()"]
    assert not writes_unrecorded(case)  # the Function's backward() is written for it


def test_memory_of_numpy_is_copied_once() -> None:
    case = case_of("x = torch.as_tensor(a)\nbuf[:] = 1\n", "GX401", {2: "writes"}, {1: ""})
    assert changed(case, "copy of its own") == ["x = torch.as_tensor(a).clone()"]
    case = case_of("x = torch.as_tensor(a).clone()\nbuf[:] = 1\n", "GX401", {2: "w"}, {1: ""})
    assert not any("copy of its own" in title for title in patches(case))
    assert not writes_unrecorded(case)


def test_a_list_of_values_is_stacked_and_what_hid_the_cut_goes() -> None:
    text = """
    def crit(p, q):
        vals = []
        for a, b in zip(p, q):
            vals.append((a - b).mean().item())
        return torch.tensor(vals).mean()
    loss = crit(net(x), y)
    loss.requires_grad = True
    loss.backward()
    """
    case = case_of(text, "GX304", {4: "item()"}, {5: "a leaf", 7: "makes `loss` a leaf"})
    both = patches(case)["take what cuts the graph out at <string>:4 and <string>:5"]
    assert "vals.append((a - b).mean())" in both
    assert "return torch.stack(vals).mean()" in both
    assert "requires_grad" not in both


def test_numpy_becomes_torch() -> None:
    text = """
    def margin(c, label):
        t = np.arccos(np.clip(c.detach().numpy(), -1, 1)).sum(axis=1)
        t[np.arange(3), label.numpy()] += 1
        return torch.from_numpy(np.max(t, axis=0, keepdims=True))
    """
    assert changed(case_of(text, "GX304", {2: "detach().numpy()"}), "in place of numpy") == [
        "    t = torch.acos(torch.clip(c, -1, 1)).sum(axis=1)",
        "    return (torch.amax(t, dim=0, keepdim=True))",
    ]


@pytest.mark.parametrize(
    ("hard", "expected"),
    [
        ("(s > t).float()", "((s - (t)) + ((s > t).float() - (s - (t))).detach())"),
        ("(s <= t).to(x.dtype)", "((t - (s)) + ((s <= t).to(x.dtype) - (t - (s))).detach())"),
        ("s.sigmoid().round()", "((s.sigmoid()) + (s.sigmoid().round() - (s.sigmoid())).detach())"),
        ("torch.sign(s)", "((s) + (torch.sign(s) - (s)).detach())"),
    ],
)
def test_a_decision_hands_the_gradient_through(hard: str, expected: str) -> None:
    case = case_of(f"m = {hard}\n", "GX304", {1: "the comparison"})
    assert changed(case, "through the decision") == [f"m = {expected}"]


def test_truth_values_that_stay_such_are_left() -> None:
    assert not patches(case_of("m = x[s > t]\n", "GX304", {1: "the comparison"}))


def test_an_input_requires_grad_and_a_mode_is_left_off() -> None:
    text = "h = emb(ids)\nh = checkpoint(layer, h, use_reentrant=True)\n"
    case = case_of(
        text, "GX301", {2: "runs without a graph"}, {1: "goes in, which does not require grad"}
    )
    assert changed(case, "let what goes in") == ["h = emb(ids).requires_grad_()"]
    text = """
    class A:
        @torch.inference_mode()
        def plan(self):
            self.window = self.cells[1:]
    """
    case = case_of(text, "GX104", {4: "writes"}, {4: "slice makes the view"}, function="A.plan")
    assert "@torch" not in patches(case)["leave grad mode on at <string>:3"]


@pytest.mark.parametrize(
    ("body", "frozen"),
    [
        ("h = lm(x)", "lm"),
        ("h = lm.embed(x).sum()", "lm"),
        ("h = self.lm.embed(self.clip(x))", "self.lm self.clip"),
        ("h = self.encode(torch.relu(x))", ""),
        ("h = F.relu(helper(x))", ""),
    ],
)
def test_a_frozen_model_takes_the_place_of_no_grad(body: str, frozen: str) -> None:
    text = f"""
    def helper(x):
        return x
    class Net:
        def encode(self, x):
            return x
        def forward(self, lm, x):
            with torch.no_grad():
                {body}
    """
    case = case_of(text, "GX301", {7: "enters no_grad"}, {8: "runs under no_grad"})
    found = [t for title, t in patches(case).items() if title.startswith("freeze")]
    assert len(found) == bool(frozen)
    lines = [f"        {name}.requires_grad_(False)" for name in frozen.split()]
    assert all("\n".join([*lines, "        with torch.enable_grad():"]) in t for t in found)


def test_an_entry_that_is_written_is_copied_where_it_is_held() -> None:
    text = "def f(out, q):\n    out[1][:, 0] = q\n    return out\n"
    found = patches(case_of(text, "GX101", {2: "writes"}))
    assert (
        "    out[1] = out[1].clone()\n    out[1][:, 0] = q"
        in found["copy `out[1]` before the write at <string>:2"]
    )
    assert (
        "    out = (*out[:1], out[1].clone(), *out[2:])\n"
        in found["copy `out[1]` before the write at <string>:2 (of a tuple)"]
    )
    case = case_of("def f(kv, q):\n    kv['k'][0].add_(q)\n    return kv\n", "GX101", {2: "writes"})
    assert changed(case, "copy `kv['k']`") == ["    kv['k'] = kv['k'].clone()"]
    for one in ("x[0] = q", "x[:, 1][0] = q", "x.add_(q)", "f(x)[0].add_(q)"):
        case = case_of(f"def f(x, q):\n    {one}\n    return x\n", "GX101", {2: "writes"})
        assert not any("copy `x[" in title for title in patches(case))


@pytest.mark.parametrize(
    ("line", "saved_in_call"),
    [
        ("h[:, t + 1] = torch.tanh(cell(h[:, t]))", False),
        ("h[t + 1] += h[t] * h[t]", False),
        ("h[t + 1] = step(h[t])", True),
    ],
)
def test_no_copy_above_a_statement_that_saves_what_it_writes(
    line: str, saved_in_call: bool
) -> None:
    text = f"""
    def step(x):
        return x * x
    def f(h):
        for t in range(3):
            {line}
        return h
    """
    case = case_of(text, "GX101", {5: "writes"}, {2 if saved_in_call else 5: "saves"})
    if saved_in_call:
        caller = Place(PATH, 5, None, "f", "", "", "")
        victim = dataclasses.replace(case.victims[0], callers=(caller,))
        case = dataclasses.replace(case, victims=(victim,))
    assert not any("before the write" in title for title in patches(case))
    elsewhere = case_of(text, "GX101", {5: "writes"}, {2: "saves"})
    assert changed(elsewhere, "before the write") == ["        h = h.clone()"]
    # What it saves was read above it: a copy of the whole is enough.
    taken = text.replace(line, "last = h[t]; h[t + 1] = last * last")
    taken = taken.replace("; ", "\n            ")
    case = case_of(taken, "GX101", {6: "writes"}, {6: "saves"})
    assert changed(case, "before the write") == ["        h = h.clone()"]


def test_what_is_saved_within_a_call_is_handed_in_as_a_copy() -> None:
    text = """
    def attend(q, memory):
        return q @ memory
    def f(out, q):
        for j in range(3):
            c = attend(q, memory=out[0])
            out[0][j] = c
    """
    case = case_of(text, "GX101", {6: "writes"}, {2: "saves"})
    caller = Place(PATH, 5, None, "f", "", "", "")
    victim = dataclasses.replace(case.victims[0], callers=(caller,))
    case = dataclasses.replace(case, victims=(victim,))
    assert changed(case, "hand in a copy of `out[0]`") == [
        "        c = attend(q, memory=out[0].clone())"
    ]


@pytest.mark.parametrize("given", ["False", "self.keeps", "not quick"])
def test_a_checkpoint_draws_the_same_numbers_again(given: str) -> None:
    text = f"h = checkpoint(block, x, use_reentrant=False, preserve_rng_state={given})\n"
    case = case_of(text, "GX406", {1: "runs the block again"})
    expected = "h = checkpoint(block, x, use_reentrant=False, preserve_rng_state=True)"
    assert changed(case, "preserve_rng_state=True at") == [expected]
    other = case_of(text.replace(given, "True"), "GX406", {1: "runs the block again"})
    assert not any("preserve_rng_state" in title for title in patches(other))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "loss = f(x)\nif prev is not None:\n    loss = loss + (loss - prev).abs()\n"
            "loss.backward()\nopt.step()\nprev = loss",
            "    prev = loss.detach()",
        ),
        (
            "out = net(x, self.last)\nloss = out.sum()\nloss.backward()\nopt.step()\n"
            "self.last = out",
            "    self.last = out.detach()",
        ),
        (
            "h = cell(x, old)\nnew = h * 2\n(new - old).sum().backward()\nopt.step()\nold = new",
            "    old = new.detach()",
        ),
        # Bound before it is read: nothing is given on. And what no round computes has no history.
        ("loss = f(x)\nkept = loss\nkept.backward()\nopt.step()", None),
        ("loss = f(x, scale)\nloss.backward()\nopt.step()\nscale = start", None),
    ],
)
def test_what_a_round_gives_on_by_another_name(body: str, expected: str | None) -> None:
    text = "for x in data:\n" + textwrap.indent(body, "    ") + "\n"
    step = next(n for n, line in enumerate(text.splitlines(), 1) if "opt.step" in line)
    case = case_of(text, "GX101", {step: "add_ writes"}, {2: "Addmm saves it"}, failed=step - 1)
    given_on = [t for title, t in patches(case).items() if "without its history at" in title]
    given_on = [t for t in given_on if "sum values" not in t]
    if expected is None:
        assert given_on == []
    else:
        assert [expected in t.splitlines() for t in given_on] == [True]
