"""GX302's help for tensors in named tuples, frozen dataclasses and their like, typed as printed."""

from __future__ import annotations

from advice import Advice, Advices, check
from cases import run

carried, apart = Advices(), Advices()

carried(
    "named_tuple_of_a_function", """
    from typing import NamedTuple
    class Carry(NamedTuple):
        h: torch.Tensor
        n: int
    w = torch.randn(3, 3, requires_grad=True)
    leaves = [w]
    def step(carry, x):
        return Carry(torch.tanh(carry.h @ w + x), carry.n + 1)
    carry = Carry(torch.zeros(3), 0)
    for t in range(4):
        carry = step(carry, torch.ones(3))
        carry.h.sum().backward()
    """,
    ("carry.h.sum().backward()",
     "carry.h.sum().backward()\ncarry = carry._replace(h=carry.h.detach())"),
    twin=(("carry.h.sum().backward()",
           "carry.h.sum().backward()\ncarry = Carry(torch.tensor(carry.h.tolist()), carry.n)"),),
)  # fmt: skip
carried(
    "frozen_dataclass_of_a_cell", """
    import dataclasses
    @dataclasses.dataclass(frozen=True)
    class State:
        h: torch.Tensor
        c: torch.Tensor
    cell = nn.LSTMCell(3, 3)
    leaves = [cell.weight_hh]
    state = State(torch.zeros(2, 3), torch.zeros(2, 3))
    for _ in range(3):
        h, c = cell(torch.ones(2, 3), (state.h, state.c))
        state = State(h, c)
        state.h.pow(2).sum().backward()
    """,
    ("state.h.pow(2).sum().backward()",
     "state.h.pow(2).sum().backward()\n"
     "state = dataclasses.replace(state, h=state.h.detach(), c=state.c.detach())"),
    twin=(("state.h.pow(2).sum().backward()",
           "state.h.pow(2).sum().backward()\n"
           "state = State(torch.tensor(h.tolist()), torch.tensor(c.tolist()))"),),
)  # fmt: skip
carried(
    "tuple_with_a_number", """
    w = torch.randn(3, 3, requires_grad=True)
    leaves = [w]
    def step(c, x):
        return (torch.tanh(c[0] @ w + x), c[1] + 1)
    carry = (torch.zeros(3), 0)
    for t in range(4):
        carry = step(carry, torch.ones(3))
        carry[0].sum().backward()
    """,
    ("carry[0].sum().backward()",
     "carry[0].sum().backward()\n"
     "carry = tuple(t.detach() if torch.is_tensor(t) else t for t in carry)"),
    twin=(("carry[0].sum().backward()",
           "carry[0].sum().backward()\ncarry = (torch.tensor(carry[0].tolist()), carry[1])"),),
)  # fmt: skip
carried(
    "result_of_a_function", """
    w = torch.randn(3, 3, requires_grad=True)
    leaves = [w]
    def step(h, x):
        return torch.tanh(h @ w + x)
    h = torch.zeros(3)
    for t in range(4):
        h = step(h, torch.ones(3))
        h.sum().backward()
    """,
    ("h.sum().backward()", "h.sum().backward()\nh = h.detach()"),
    words=("`h = h.detach()` below",),
    twin=(("h.sum().backward()", "h.sum().backward()\nh = torch.tensor(h.tolist())"),),
)  # fmt: skip
carried(
    "object_with_attributes", """
    import dataclasses
    @dataclasses.dataclass
    class Memory:
        key: torch.Tensor
        value: torch.Tensor
    w = torch.randn(3, requires_grad=True)
    leaves = [w]
    def turn(memory):
        return Memory((memory.key * w).tanh(), (memory.value * w).sigmoid())
    memory = Memory(torch.ones(3), torch.ones(3))
    for _ in range(3):
        memory = turn(memory)
        (memory.key * memory.value).sum().backward()
    """,
    ("(memory.key * memory.value).sum().backward()",
     "(memory.key * memory.value).sum().backward()\n"
     "memory.key = memory.key.detach(); memory.value = memory.value.detach()"),
    words=("memory.key = memory.key.detach(); memory.value = memory.value.detach()` below",),
    twin=(("(memory.key * memory.value).sum().backward()",
           "(memory.key * memory.value).sum().backward()\n"
           "memory = Memory(*(torch.tensor(t.tolist()) for t in (memory.key, memory.value)))"),),
)  # fmt: skip

apart(
    "entry_of_a_named_tuple", """
    from typing import NamedTuple
    class Rollout(NamedTuple):
        value: torch.Tensor
        logp: torch.Tensor
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    leaves = [a, b]
    rollout = Rollout(a.exp(), b.sigmoid())
    (rollout.value - 1).pow(2).sum().backward()
    (rollout.logp * (1 - rollout.value)).sum().backward()
    """,
    ("(rollout.logp * (1 - rollout.value)).sum().backward()",
     "rollout = rollout._replace(value=rollout.value.detach())\n"
     "(rollout.logp * (1 - rollout.value)).sum().backward()"),
    words=("`rollout = rollout._replace(value=rollout.value.detach())` before",),
    twin=(("(rollout.logp * (1 - rollout.value)).sum().backward()",
           "(rollout.logp * (1 - torch.tensor(rollout.value.tolist()))).sum().backward()"),),
)  # fmt: skip
apart(
    "field_of_a_frozen_dataclass_in_a_list", """
    import dataclasses
    @dataclasses.dataclass(frozen=True)
    class Step:
        reward: float
        value: torch.Tensor
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    steps = [Step(0.5, w.exp())]
    steps[0].value.sum().backward()
    (steps[0].value * w).sum().backward()
    """,
    ("(steps[0].value * w).sum().backward()",
     "steps[0] = dataclasses.replace(steps[0], value=steps[0].value.detach())\n"
     "(steps[0].value * w).sum().backward()"),
    words=("`steps[0] = dataclasses.replace(steps[0], value=steps[0].value.detach())` before",),
    twin=(("(steps[0].value * w).sum().backward()",
           "(torch.tensor(steps[0].value.tolist()) * w).sum().backward()"),),
)  # fmt: skip
apart(
    "entry_of_a_tuple", """
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    pair = (w.sin(), w.exp(), w.cos())
    (pair[1] * 2).sum().backward()
    (pair[1] * pair[2]).sum().backward()
    """,
    ("(pair[1] * pair[2]).sum().backward()",
     "pair = (*pair[:1], pair[1].detach(), *pair[2:])\n(pair[1] * pair[2]).sum().backward()"),
    words=("`pair = (*pair[:1], pair[1].detach(), *pair[2:])` before",),
    twin=(("(pair[1] * pair[2]).sum().backward()",
           "(torch.tensor(pair[1].tolist()) * pair[2]).sum().backward()"),),
)  # fmt: skip


@carried.each()
def test_what_is_carried_is_cut(each: Advice) -> None:
    check(each, "GX302")


@apart.each()
def test_what_two_losses_share_is_cut(each: Advice) -> None:
    check(each, "GX302")


NOT_TO_BE_CUT = {
    # The entry is made of what is used up, as the one beside it is.
    "another_entry_leads_there": """
        from typing import NamedTuple
        class Feat(NamedTuple):
            z: torch.Tensor
            m: torch.Tensor
        w = torch.ones(3, requires_grad=True)
        z = w.tanh()
        f = Feat(z, z.mean())
        f.z.pow(2).sum().backward()
        (f.z.exp().sum() + f.m).backward()
    """,
    "property_without_a_setter": """
        class Code:
            def __init__(self, z):
                self.__dict__["z"] = z
            @property
            def z(self):
                return self.__dict__["z"]
        w = torch.ones(3, requires_grad=True)
        code = Code(w.exp())
        code.z.sum().backward()
        (code.z * w).sum().backward()
    """,
    "read_only_view_of_a_dict": """
        import types
        w = torch.ones(3, requires_grad=True)
        feats = types.MappingProxyType({"low": w.exp()})
        feats["low"].sum().backward()
        (feats["low"] * w).sum().backward()
    """,
}


def test_no_cut_is_told_where_none_can_be_typed() -> None:
    from textwrap import dedent

    for name, source in NOT_TO_BE_CUT.items():
        fix = run(dedent(source), name).diagnoses[0].fix
        assert ".detach()" not in fix, fix
        assert "in place of both calls; or, where they cannot be added, keep the graph" in fix, fix
