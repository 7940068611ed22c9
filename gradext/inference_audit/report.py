"""audit_inference(): can this run under inference_mode instead of no_grad, and what stays behind?

Owns the report as plain data and the public door. The experiments and the judging of them are
gradext.inference_audit's, which is imported when somebody asks; how the report looks is
gradext.reporters.inference_audit's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gradext._version import __version__
from gradext.base import display
from gradext.diagnosis.model import Diagnosis, Site, site_to_dict

SECONDS = 600.0  # for one experiment

# The named checks, in the order of the report.
CHECKS = (
    *("runs", "same outputs", "writes", "parameters and buffers", "kept tensors", "train step"),
    *("no_grad afterwards", "deepcopy", "state_dict", "to", "save and load", "threads"),
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One named check.

    Attributes:
        name: one of CHECKS.
        status: "pass", "warn", "fail" or "skipped".
        message: one sentence.
        sites: lines, the most telling first. paths: the tensors that it is about.
        fix: what to change; "" where nothing needs to.
        diagnoses: what gradext.explain says of an error, or GX204 of a kept tensor.
    """

    name: str
    status: str
    message: str
    sites: tuple[Site, ...] = ()
    paths: tuple[str, ...] = ()
    fix: str = ""
    diagnoses: tuple[Diagnosis, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "message": self.message,
            "sites": [site_to_dict(site) for site in self.sites],
            "paths": list(self.paths),
            "fix": self.fix,
            "diagnoses": [diagnosis.to_json() for diagnosis in self.diagnoses],
        }


@dataclasses.dataclass(frozen=True)
class InferenceAudit(display.Shown):
    """The answer; prints as a list of checks.

    Attributes:
        subject: what was audited ("Rope", "model.generate").
        verdict: the answer in one sentence.
        checks: one per name in CHECKS.
        not_checked: what could not be looked at, one sentence each.
        isolation: "process" (each run in a process of its own), "copy" (a deep copy in this
            process) or "none" (the object itself).
        torch, gradext: versions.
    """

    subject: str
    verdict: str
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...]
    isolation: str
    torch: str = torch.__version__
    gradext: str = __version__

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings are allowed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "fail")

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError for no name in CHECKS."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r} is no check; the checks are {', '.join(CHECKS)}")

    def __str__(self) -> str:
        return display.show("inference_audit.text", self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return display.show("ansi_html.result", "inference_audit.text", self)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `gradext check --inference --json` writes it."""
        return {
            "gradext": self.gradext,
            "torch": self.torch,
            "subject": self.subject,
            "ok": self.ok,
            "verdict": self.verdict,
            "isolation": self.isolation,
            "checks": [check.to_json() for check in self.checks],
            "not_checked": list(self.not_checked),
        }
