"""GX201's help for what an lru_cache keeps, typed where it says."""

from __future__ import annotations

from advice import Advice, Advices, check

advice = Advices()
_COPY = "`table(3).clone()` in place of `table(3)`"

advice(
    "function_that_enters_the_mode_itself", """
    import functools
    @functools.lru_cache(maxsize=None)
    def mask(n):
        with torch.inference_mode():
            return torch.tril(torch.ones(n, n))
    w = torch.ones(3, 3, requires_grad=True)
    leaves = [w]
    (w * mask(3)).sum().backward()
    """,
    ("(w * mask(3)).sum().backward()", "(w * mask(3).clone()).sum().backward()"),
    words=("`mask(3).clone()` in place of `mask(3)`",),
    never=("cache_clear",),
    twin=(("with torch.inference_mode():", "if True:"),),
)  # fmt: skip
advice(
    "block_that_returns", """
    import functools
    @functools.cache
    def table(n):
        return torch.arange(1.0, n + 1)
    def evaluate(x):
        with torch.inference_mode():
            return x * table(3)
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    evaluate(torch.ones(3))
    (w * table(3)).sum().backward()
    """,
    ("(w * table(3)).sum().backward()", "(w * table(3).clone()).sum().backward()"),
    words=(_COPY,),
    never=("cache_clear",),
    twin=(("with torch.inference_mode():", "if True:"),),
)  # fmt: skip
advice(
    "block_that_goes_on_with_the_loop", """
    import functools
    @functools.cache
    def table(n):
        return torch.arange(1.0, n + 1)
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    for k in range(4):
        if k % 2 == 0:
            with torch.inference_mode():
                w * table(3)
                continue
        (w * table(3)).sum().backward()
    """,
    ("(w * table(3)).sum().backward()", "(w * table(3).clone()).sum().backward()"),
    words=(_COPY,),
    never=("cache_clear",),
    twin=(("with torch.inference_mode():", "if True:"),),
)  # fmt: skip
advice(
    "block_that_raises", """
    import functools
    @functools.cache
    def table(n):
        return torch.arange(1.0, n + 1)
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    try:
        with torch.inference_mode():
            raise KeyError(table(3))
    except KeyError:
        pass
    scale = table(3)
    (w * scale).sum().backward()
    """,
    ("(w * scale).sum().backward()", "scale = scale.clone()\n(w * scale).sum().backward()"),
    words=("`scale = scale.clone()`",),
    never=("cache_clear",),
    twin=(("with torch.inference_mode():", "if True:"),),
)  # fmt: skip
advice(
    "one_of_several_results", """
    import functools
    @functools.cache
    def tables(n):
        t = torch.arange(1.0, n + 1)
        return t.sin(), t.cos()
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    with torch.inference_mode():
        z = tables(3)[0] + 1
    (w * tables(3)[0]).sum().backward()
    """,
    ("(w * tables(3)[0]).sum().backward()",
     "tables.cache_clear()\n(w * tables(3)[0]).sum().backward()"),
    words=("after that block: `tables.cache_clear()`",),
    never=("tables(3).clone()",),
    twin=(("with torch.inference_mode():", "if True:"),),
)  # fmt: skip


@advice.each()
def test_the_help_is_typed(each: Advice) -> None:
    check(each, "GX201")
