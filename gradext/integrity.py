"""Is the memory what it was? The door to content fingerprints, and to what is built on them."""

from __future__ import annotations

from gradext.fingerprints import (
    Fingerprint,
    FingerprintChange,
    FingerprintChanges,
    Fingerprints,
    compare_fingerprints,
    fingerprint,
)
from gradext.guarding import GuardError, GuardWarning, guard
from gradext.replicas import Holding, ReplicaDifference, ReplicaReport, check_replicas

__all__ = [
    "Fingerprint",
    "FingerprintChange",
    "FingerprintChanges",
    "Fingerprints",
    "GuardError",
    "GuardWarning",
    "Holding",
    "ReplicaDifference",
    "ReplicaReport",
    "check_replicas",
    "compare_fingerprints",
    "fingerprint",
    "guard",
]
