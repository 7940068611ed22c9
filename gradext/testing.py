"""check_op(): a test for library authors, that an op tells autograd the truth about its writes.

Owns the public door and the message of a failure; the runs and the judging are gradext.opcheck's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gradext.base import errors
from gradext.opcheck import schemas, verdicts, witnesses
from gradext.opcheck.examine import examine
from gradext.opcheck.verdicts import Finding
from gradext.state.tree import tensors_of

__all__ = ["OpCheckError", "OpReport", "check_op"]


@dataclasses.dataclass(frozen=True)
class OpReport:
    """What `check_op` saw of an op on which the witnesses agree.

    Attributes:
        op: the overload's full name ("mylib::scale_").
        written: the arguments that changed: declared and counted, or sharing memory with such.
        remarks: what is no disagreement and worth knowing ("`out` held the same bytes after").
    """

    op: str
    written: tuple[str, ...]
    remarks: tuple[str, ...]


class OpCheckError(AssertionError):
    """The witnesses disagree, or the op did not run; the message has one line per reason.

    Attributes:
        op: the overload's full name. findings: the disagreements, worst first; none where it
            did not run.
    """

    def __init__(self, op: str, message: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.op = op
        self.findings = findings


def check_op(op: Any, /, *args: Any, **kwargs: Any) -> OpReport:
    """Check that the schema, the version counters and the bytes tell the same story of `op`.

    Runs `op(*args, **kwargs)` six times on copies of the tensors: with grad mode on (twice, to know
    what is random), with inputs that require grad, under no_grad, and under inference_mode with
    normal tensors and with inference tensors. The arguments themselves are not touched, and the
    random number generators are put back. Choose arguments on which the op really writes: a write
    of the bytes that are there already cannot be seen.

        @torch.library.custom_op("mylib::scale_", mutates_args=("x",))
        def scale_(x: torch.Tensor, by: float) -> None:
            x.numpy()[...] *= by

        def test_scale_():
            gradext.testing.check_op(scale_, torch.rand(3), 2.0)

    Args:
        op: an overload (torch.ops.mylib.f.default), a packet (torch.ops.mylib.f; the overload that
            fits the arguments is checked), or what torch.library.custom_op returned.

    Returns:
        A small report, when nothing disagrees.

    Raises:
        OpCheckError: an AssertionError with one line per reason: which argument, which witness said
            what, how to fix it. Raised for an argument that is declared as written and not bumped,
            bumped more than once, written and not declared, or written outside of its own elements;
            for a result that aliases an argument undeclared, or does not where it must; for results
            or counting that differ under inference_mode; and when `op` raises.
        TypeError: `op` is no op, or no overload fits.

    Source: the version counter's contract is in torch/csrc/autograd/variable.h and
    ADInplaceOrView's in torch/csrc/autograd/VariableTypeManual.cpp.
    """
    overload = _overload(op, args, kwargs)
    device = _device(args, kwargs)
    outcome, findings = examine(overload, args, kwargs, source="check_op", device=device)
    name = outcome.op
    if not outcome.ran:
        error = outcome.runs[witnesses.GRAD].error
        raise OpCheckError(name, f"{name} did not run on these arguments: {error}")
    findings = verdicts.merged(findings)
    lies = tuple(finding for finding in findings if finding.severity != verdicts.NOTE)
    if lies:
        raise OpCheckError(name, "\n".join(_line(finding) for finding in lies), lies)
    return OpReport(
        name,
        tuple(given.name for given in outcome.runs[witnesses.GRAD].given if given.changed),
        tuple(finding.reason for finding in findings),
    )


def _line(finding: Finding) -> str:
    return f"{finding.op}: {finding.kind}: {finding.reason}; fix: {finding.fix}"


def _overload(op: Any, args: Any, kwargs: Any) -> torch._ops.OpOverload:
    inner = getattr(op, "_opoverload", None)  # of a torch.library.CustomOpDef
    if isinstance(inner, torch._ops.OpOverload):
        return inner
    if isinstance(op, torch._ops.OpOverload):
        return op
    if isinstance(op, torch._ops.OpOverloadPacket):
        try:
            return schemas.resolve(op, args, kwargs)
        except RuntimeError as error:
            raise TypeError(
                f"gradext.testing.check_op: no overload of {op._qualified_op_name} takes these "
                f"arguments: {errors.one_line(error)}"
            ) from None
    kind = type(op)
    raise TypeError(
        "gradext.testing.check_op: expected an op (torch.ops.mylib.f, one of its overloads, or "
        f"what torch.library.custom_op returned), got {kind.__module__}.{kind.__qualname__}"
    )


def _device(args: Any, kwargs: Any) -> str:
    for _, t in tensors_of([*args, *kwargs.values()]):
        return t.device.type
    return "cpu"
