"""Ops that lie, one per kind, and honest ones beside them. Imported by tests and by the program."""

from __future__ import annotations

import os
import time

import torch

NAMESPACE = "gradext_liars"
library = torch.library.Library(NAMESPACE, "DEF")


def op(schema):
    """Define the op and make the function its CPU kernel."""
    name = library.define(schema)

    def register(function):
        library.impl(name, function, "CPU")
        return function

    return register


def raw(t):
    """The memory of `t`, past autograd and the dispatcher."""
    return t.detach().numpy()


@op("honest_(Tensor(a!) x, float by) -> ()")
def honest_(x, by):
    raw(x)[...] *= by
    torch.autograd.graph.increment_version(x)


@op("honest_beside_(Tensor(a!) x, Tensor other) -> ()")
def honest_beside_(x, other):
    honest_(x, 2)


@op("pure(Tensor x) -> Tensor")
def pure(x):
    return x.clone()


@op("uncounted_(Tensor(a!) x) -> ()")
def uncounted_(x):
    raw(x)[...] += 1


@op("uncounted_list_(Tensor(a!)[] xs, Tensor by) -> ()")
def uncounted_list_(xs, by):
    for x in xs:
        raw(x)[...] += 1


@op("twice_(Tensor(a!) x) -> ()")
def twice_(x):
    x.add_(1)  # counts by itself
    torch.autograd.graph.increment_version(x)


@op("undeclared(Tensor x, Tensor stats) -> Tensor")
def undeclared(x, stats):
    raw(stats)[...] += 1
    return x + 1


@op("undeclared_counted(Tensor x) -> ()")
def undeclared_counted(x):
    raw(x)[...] += 1
    torch.autograd.graph.increment_version(x)


@op("same(Tensor x) -> Tensor")
def same(x):
    return x


@op("hidden_alias(Tensor x) -> Tensor")
def hidden_alias(x):
    return torch.from_numpy(raw(x))


@op("inside_is_other(Tensor x) -> Tensor")
def inside_is_other(x):
    return x + (1 if torch.is_inference_mode_enabled() else 2)


@op("inside_raises(Tensor x) -> Tensor")
def inside_raises(x):
    if torch.is_inference_mode_enabled():
        raise ValueError("not here")
    return x + 1


@op("inside_is_uncounted_(Tensor(a!) x) -> ()")
def inside_is_uncounted_(x):
    raw(x)[...] += 1
    if not torch.is_inference_mode_enabled():
        torch.autograd.graph.increment_version(x)


@op("inside_is_normal(Tensor x) -> Tensor")
def inside_is_normal(x):
    with torch.inference_mode(False):
        return torch.from_numpy(raw(x) + 1)


@op("outside_(Tensor(a!) x) -> ()")
def outside_(x):
    whole = torch.empty(0).set_(x.untyped_storage())
    raw(whole)[...] += 1
    torch.autograd.graph.increment_version(x)


@op("copy_instead_(Tensor(a!) x) -> Tensor(a!)")
def copy_instead_(x):
    raw(x)[...] += 1
    torch.autograd.graph.increment_version(x)
    return x.clone()


@op("random(Tensor x) -> Tensor")
def random(x):
    return torch.from_numpy(raw(torch.rand(x.shape)) + time.monotonic())


@op("crashes_on_ints(Tensor x) -> Tensor")
def crashes_on_ints(x):
    if not x.is_floating_point():
        os.abort()
    raise ValueError("no floats please")


@op("leaves(Tensor x) -> Tensor")
def leaves(x):
    os._exit(7)


@op("hangs(Tensor x) -> Tensor")
def hangs(x):
    time.sleep(3600)


@torch.library.custom_op(f"{NAMESPACE}::custom_undeclared", mutates_args=())
def custom_undeclared(x: torch.Tensor) -> torch.Tensor:
    x.numpy()[...] += 1
    return x + 1


@torch.library.custom_op(f"{NAMESPACE}::custom_honest_", mutates_args=("x",))
def custom_honest_(x: torch.Tensor, by: float) -> None:
    x.numpy()[...] *= by
