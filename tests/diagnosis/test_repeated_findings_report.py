"""What the report of a run says of findings that come again: how often, over threads and depths."""

from __future__ import annotations

import json
import subprocess
import sys

RUN = """
import threading
import torch

x = torch.ones(3, requires_grad=True)
with torch.inference_mode():
    table = torch.ones(3)


def cut():
    try:
        (x.detach() * 2.0).sum().backward()
    except RuntimeError:
        pass


def rebuilt():
    torch.tensor(x.exp().sum().item(), requires_grad=True).backward()


def unused():
    try:
        torch.autograd.grad(x.exp().sum(), x * 2.0)
    except RuntimeError:
        pass


def written(grad):
    table.add_(1.0)


def hooked():
    h = x.exp()
    h.register_hook(written)
    try:
        h.sum().backward()
    except RuntimeError:
        pass


def all_of_them():
    for _ in range(2):
        for _ in range(3):
            for fault in (cut, rebuilt, unused, hooked):
                fault()


def deep(depth):
    deep(depth - 1) if depth else all_of_them()


threads = [threading.Thread(target=deep, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
    thread.join()
"""


def test_the_report_counts_over_loops_threads_and_depths(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(RUN)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", "--json", report, script],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    counts = {d["code"]: d["count"] for d in json.loads(report.read_text())["diagnoses"]}
    assert counts == {"GX301": 24, "GX304": 24, "GX303": 24, "GX202": 24}
    assert done.stderr.count("this happened 24 times") == 4
