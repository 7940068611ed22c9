"""What a patch costs, and that of two verified ones the cheaper wins."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import forks
import pytest
import torch

from gradext.fix import cost, proof
from gradext.fix.cost import Cost
from gradext.fix.trial import Ran
from gradext.reporters import fix as shown


def ran(*passes: tuple[float, int | None], raised: bool = False) -> Ran:
    notes = [
        {"begun": begun, "held": held, "raised": False, "imported": 0} for begun, held in passes
    ]
    if raised:
        notes[-1]["raised"] = True
    return Ran(0, "", "", {}, notes, [], False, 0.0)


def test_one_step_and_the_bytes_before_the_pass_that_failed() -> None:
    broken = ran((1.0, 100), (2.0, 110), (3.0, 120), raised=True)
    found = cost.compare(broken, ran((1.0, 100), (2.5, 110), (4.0, 520), (9.0, 9000)))
    assert (found.bytes, found.ratio, found.of) == (400, 1.5, "step")


def test_the_first_pass_fails() -> None:
    found = cost.compare(ran((1.0, 100), raised=True), ran((1.2, 90), (9.0, 0)))
    assert (found.bytes, found.ratio, found.of) == (-10, 1.2, "start")


def test_where_nobody_looked_at_the_memory_the_last_look_before_counts() -> None:
    broken = ran((1.0, 5), (2.0, None), raised=True)
    assert cost.compare(broken, ran((1.0, 7), (2.0, None))).bytes == 2


def test_a_step_that_imports_a_library_says_nothing_of_the_time() -> None:
    """An optimizer's first step imports torch._dynamo, unless it is there already."""
    broken = ran((1.0, 0), (9.0, 0), (10.0, 0), (20.0, 0))
    broken.passes[1]["imported"] = broken.passes[3]["imported"] = 900
    found = cost.compare(broken, ran((1.0, 0), (2.0, 0), (3.0, 0), (4.0, 0)))
    assert found.ratio == 1.0
    broken.passes[2]["imported"] = 900
    assert cost.compare(broken, ran((1.0, 0), (2.0, 0), (3.0, 0), (4.0, 0))).ratio is None
    first = ran((8.0, 0))
    first.passes[0]["imported"] = 900
    assert cost.compare(first, ran((1.0, 0))).ratio is None


def test_what_a_process_does_once_is_not_compared_with_what_a_fork_need_not_do() -> None:
    broken, forked = ran((9.0, 0), (19.0, 0), (20.0, 0)), ran((0.1, 0), (0.2, 0), (1.2, 0))
    forked.forked = True
    assert cost.compare(broken, forked).ratio == 1.0  # of the second step alone
    for few in (1, 2):
        one, other = ran(*[(9.0 * k, 0) for k in range(1, few + 1)]), ran((0.1, 0), (0.2, 0))
        other.forked = True
        assert cost.compare(one, other).ratio is None
        other.forked = False
        assert cost.compare(one, other).ratio is not None


def test_imports_of_gradext_fix_itself_are_none_of_the_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(count: int) -> None:
        for k in range(count):
            monkeypatch.setitem(sys.modules, f"{count} modules, {k}", sys)

    meter = cost.Meter()
    load(3)
    meter.aside(lambda: load(30))
    assert meter.imported() == 3
    assert meter.imported() == 0


def test_nothing_is_compared_where_no_pass_was_begun() -> None:
    assert cost.compare(ran(), ran((1.0, 5))) == Cost()
    assert Cost().ratio is None


def test_a_time_too_short_is_no_time() -> None:
    assert Cost(0, 0.004, 0.001).ratio is None
    assert Cost(0, 0.004, 0.001).key == (0.0, 0)


def test_noise_does_not_put_the_larger_one_first() -> None:
    larger, smaller, slow = Cost(4096, 0.98, 1.0), Cost(64, 1.1, 1.0), Cost(0, 3.0, 1.0)
    assert sorted([slow, larger, smaller], key=lambda one: one.key) == [smaller, larger, slow]
    # Half as long, or nearly twice as long, is what one program takes on a busy machine.
    assert Cost(8, 0.51, 1.0).key == Cost(8, 1.0, 1.0).key == Cost(8, 1.9, 1.0).key
    assert Cost(0, 0.4, 1.0).key < Cost(0, 1.0, 1.0).key < Cost(0, 2.1, 1.0).key


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "+0 bytes"), (-24, "-24 bytes"), (1500, "+1.5 KiB"), (409600, "+0.4 MiB")],
)
def test_the_line(number: int, said: str) -> None:
    verdict = proof.Verdict(proof.VERIFIED, "", 2, 2, more=1, cost=Cost(number, 1.0, 1.0))
    assert shown.verdict_line(verdict).endswith(
        f"bit-equal, 1 more backward pass ran; {said}, 1.00x"
    )


def test_what_fails_has_no_price() -> None:
    verdict = proof.Verdict(proof.FAILS, "why", cost=Cost(8, 1.0, 1.0))
    assert shown.verdict_line(verdict) == "fails: why"


def test_what_lives_is_counted_once_with_what_the_graph_alone_holds() -> None:
    x = torch.ones(1000, requires_grad=True)
    meter = cost.Meter()
    before = meter.held(0, [])
    h = x.exp()  # 4,000 bytes
    view = h[:10]
    out = view.sin().cos()  # 40 bytes of sin's result, which no name holds, and 40 of its own
    after = meter.held(1, [out])
    assert before is not None
    assert after is not None
    assert after - before == 4000 + 40 + 40
    del view, out


def test_a_long_program_is_looked_at_now_and_then() -> None:
    meter = cost.Meter()
    looked = [n for n in range(40) if meter.held(n, []) is not None]
    assert looked == [0, 1, 2, 3, 4, 8, 16, 32]


def test_what_gradext_does_itself_is_not_counted() -> None:
    meter = cost.Meter()
    meter.aside(lambda: sum(range(2_000_000)))
    own = meter.seconds()
    sum(range(2_000_000))
    assert meter.seconds() > own


def fixed(folder: Path, text: str) -> list[dict[str, Any]]:
    (folder / "train.py").write_text(textwrap.dedent(text))
    done = forks.fix(folder, "--json", "out.json", "train.py")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())["candidates"]
    return found


def test_of_two_verified_patches_the_cheaper_one_wins(tmp_path: Path) -> None:
    """A copy of what is saved, 40 bytes, and not of all that is written."""
    found = fixed(
        tmp_path,
        """
        import torch

        w = torch.ones(10, requires_grad=True)
        buffer = torch.rand(1000, 10)
        y = w * buffer[3]
        buffer += 1
        (y.sum() + buffer.sum()).backward()
        """,
    )
    best, second = found[:2]
    assert (best["level"], second["level"]) == ("verified", "verified")
    assert "buffer[3].clone()" in best["diff"]
    costs = [one["proof"]["cost"]["bytes"] for one in (best, second)]
    assert costs[0] < costs[1]
    assert "buffer = buffer + 1" in second["diff"]


def test_a_patch_that_costs_nothing_is_the_end_of_the_search(tmp_path: Path) -> None:
    (only,) = fixed(
        tmp_path,
        """
        import torch

        with torch.inference_mode():
            table = torch.rand(4, 3)
        torch.nn.Linear(3, 1)(table).sum().backward()
        """,
    )
    assert only["proof"]["cost"]["bytes"] in (0, None)
    assert only["level"] == "verified"
