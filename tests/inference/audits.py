"""One call of the audit, and what its report says, for the tests of both."""

from __future__ import annotations

import subjects
import torch
from subjects import line

from gradext.inference_audit import audit as audits

X = torch.linspace(-1, 1, 16 * 4).view(16, 4)
NORMAL = "with torch.inference_mode(False), torch.no_grad():"


def audit(subject, *args, **how):
    return audits.audit(subject, args or (X.clone(),), **how)


def lines_of(check):
    return [(site.frame.file, site.frame.line) for site in check.sites]


def at(name):
    return (str(subjects.FILE), line(name))


def statuses(report):
    return {check.name: check.status for check in report.checks}
