"""The tests of other libraries, with and without gradext: not one outcome may differ.

    python tests/peers/run_peers.py                     every peer whose tests can be had
    python tests/peers/run_peers.py einops --modes plain,run
    python tests/peers/run_peers.py torch --source torch=FOLDER --out benchmarks/results/peers.json

Owns the table of peers and what is compared; docs/peers.md says what the columns mean. Each peer is
downloaded by its version or its commit, and what its tests need is installed into an environment of
its own under --work, which sees the packages of this Python (torch, pytest, gradext) too. Exits 1
where an outcome differs, gradext counted an error of its own, or no test ran; 2 where a peer cannot
be had. Nothing of a peer stays in this repository.
"""

from __future__ import annotations

import argparse
import collections
import compileall
import dataclasses
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
MODES = ("plain", "record", "run", "guard")
COUNTED = ("passed", "failed", "skipped")  # an error in a fixture is a failure here
# What reads as an error of gradext's own, among the lines that it prints.
OWN = re.compile(
    r"^gradext: (?!\d+ (?:error|warning))(?!\d+ checks for silent (?:errors|writes))(.+)"
)


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library and those of its tests that are run, as paths below its source's top folder.

    Attributes:
        version: of its sdist, or a repository's address and a commit where no sdist has its tests;
            None: its tests must be given by --source.
        needs: other packages, installed without their own dependencies.
        options: of pytest.
        folders: of the source, from which modules are imported.
        timeout: seconds that one mode may take.
    """

    version: str | tuple[str, str] | None
    tests: tuple[str, ...]
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    folders: tuple[str, ...] = (".",)
    timeout: int = 1800


_GAUSSIAN = (
    "jaxtyping==0.3.11",
    "wadler-lindig==0.1.8",
    "mpmath==1.3.0",
    "scipy==1.17.1",
    "scikit-learn==1.9.1",
    "joblib==1.6.0",
    "threadpoolctl==3.8.0",
    "narwhals==2.29.0",
)
PEERS = {
    "einops": Peer(
        "0.8.2",
        ("einops/tests",),
        ("parameterized==0.9.0",),
        ("-k", "not compile"),  # three tests of the compiler take 280 of 290 seconds
    ),
    "linear_operator": Peer("0.6.1", ("test/functions", "test/operators", "test/utils"), _GAUSSIAN),
    "gpytorch": Peer(
        "1.15.2",
        ("test/kernels", "test/likelihoods", "test/variational", "test/mlls", "test/functions"),
        ("linear_operator==0.6.1", *_GAUSSIAN),
    ),
    "pyro-ppl": Peer(
        ("https://github.com/pyro-ppl/pyro", "ff6ae1c9572591791aae8842bcd702fcf0b46fd6"),
        (
            *("tests/infer/test_valid_models.py", "tests/nn", "tests/optim", "tests/params"),
            "tests/poutine",
        ),
        ("pyro-api==0.1.2", "opt-einsum==3.4.0", "tqdm==4.70.1", "scipy==1.17.1"),
        ("-o", "filterwarnings=default"),  # newer releases of torch warn of more than it allows
    ),
    "torchdiffeq": Peer(
        ("https://github.com/rtqichen/torchdiffeq", "657943acefa826ef04c025ebeb1ff5e9d60dc268"),
        tuple(f"tests/{name}_tests.py" for name in ("api", "event", "gradient", "norm", "odeint")),
        ("scipy==1.17.1",),
        ("-k", "not (TestSolverError and test_odeint)"),  # half of the suite's time is this test's
        folders=(".", "tests"),
    ),
    "kornia": Peer(
        ("https://github.com/kornia/kornia", "b4f5a78a13891c7ac4c1cd9695941380273e981d"),
        ("tests/losses", "tests/geometry/transform"),
        ("kornia_rs==0.2.0", "packaging"),
        ("-k", "not dynamo and not jit and not onnx and not compile"),
    ),
    "torchmetrics": Peer(
        (
            "https://github.com/Lightning-AI/torchmetrics",
            "700261d3683ba77517e9650043f62a8313027437",  # 1.9.0
        ),
        ("tests/unittests/regression", "tests/unittests/wrappers"),
        (
            *("lightning-utilities==0.15.3", "cachier==4.1.0", "portalocker==3.2.0"),
            *("watchdog==6.0.0", "cloudpickle==3.1.1", "psutil==7.0.0", "properscoring==0.1"),
            *("permetrics==2.0.0", *_GAUSSIAN),
        ),
        # What it imports needs torchvision.
        ("-k", "not ddp", "--ignore=tests/unittests/wrappers/test_feature_share.py"),
        folders=("src", "tests"),
    ),
    # torch's tests are in none of its wheels.
    "torch": Peer(None, ("test_autograd.py",)),
    "torch-op_db": Peer(
        None,
        ("test_ops_gradients.py",),
        options=("-k", "float64 and not gradgrad and (linalg or nn_functional)"),
    ),
}


class Unavailable(Exception):
    """One line: why a peer's tests cannot be run here."""


def source_of(name: str, peer: Peer, work: Path, given: dict[str, Path]) -> Path:
    """The folder with the peer's source: the one that was given, or what was downloaded.

    A repository that is given stands in for the one on the net: the pinned commit is taken from it.
    """
    clone = given.get(name)
    if clone is not None and not isinstance(peer.version, tuple):
        return clone
    if peer.version is None:
        raise Unavailable(f"{name}: its tests must be given: --source {name}=FOLDER")
    if isinstance(peer.version, tuple):
        return checkout(name, *peer.version, work, clone)
    folder = work / f"{name}-{peer.version}"
    if not folder.is_dir():
        downloads = work / "sdists"
        command = ["pip", "download", "-q", "--no-binary", ":all:", "--no-deps"]
        run_tool([*command, "-d", str(downloads), f"{name}=={peer.version}"], name)
        stem = f"{name.replace('-', '_')}-{peer.version}"
        with tarfile.open(downloads / f"{stem}.tar.gz") as archive:
            archive.extractall(work / "unpacked", filter="data")
        (work / "unpacked" / stem).rename(folder)
    return folder


def checkout(name: str, address: str, commit: str, work: Path, clone: Path | None) -> Path:
    """The files of one commit, out of `clone` where there is one."""
    folder = work / f"{name}-{commit[:12]}"
    if folder.is_dir():
        return folder

    def git(*arguments: str, at: Path) -> None:
        done = subprocess.run(["git", "-C", str(at), *arguments], capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise Unavailable(f"{name}: git {arguments[0]}: {lines[-1] if lines else 'failed'}")

    archive = work / f"{name}.tar"
    if clone is None:
        clone = work / "repositories" / name
        clone.mkdir(parents=True, exist_ok=True)
        git("init", "-q", at=clone)
        git("fetch", "-q", "--depth", "1", address, commit, at=clone)
    pictures = (f":(exclude,glob)**/*.{kind}" for kind in ("png", "gif", "jpg", "svg", "ipynb"))
    git("archive", "--output", str(archive), commit, ".", *pictures, at=clone)
    with tarfile.open(archive) as files:
        files.extractall(work / "unpacked" / folder.name, filter="data")
    archive.unlink()
    (work / "unpacked" / folder.name).rename(folder)
    return folder


def run_tool(arguments: list[str], name: str, python: str = sys.executable) -> None:
    done = subprocess.run([python, "-m", *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(f"{name}: {' '.join(arguments[:2])}: {lines[-1] if lines else 'failed'}")


def environment(name: str, peer: Peer, work: Path) -> str:
    """The Python of an environment for the peer, in which this Python's packages are seen too."""
    folder = work / "environments" / name
    python = str(folder / "bin" / "python")
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        inside = next(folder.glob("lib/python*/site-packages"))
        ours = sysconfig.get_path("purelib")
        # addsitedir, not a plain path: the .pth files there are read too, gradext's among them.
        (inside / "shared.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        if peer.needs:
            run_tool(["pip", "install", "-q", "--no-deps", "--upgrade", *peer.needs], name, python)
        (folder / "complete").touch()
    return python


@dataclasses.dataclass
class Outcome:
    """What one mode gave."""

    tests: dict[str, str]
    seconds: float
    megabytes: float
    exit_code: int
    own: list[str]
    found: list[dict[str, Any]]
    text: str


def run_mode(name: str, peer: Peer, mode: str, source: Path, python: str, work: Path) -> Outcome:
    out = work / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    junit, found, log = (out / f"{mode}.{kind}" for kind in ("xml", "json", "txt"))
    for old in (junit, found):
        old.unlink(missing_ok=True)
    command = [python]
    if mode in ("run", "guard"):  # the console command, under this peer's Python
        command += [str(Path(sysconfig.get_path("scripts")) / "gradext"), "run"]
        command += ["--json", str(found)]
        command += ["--guard"] if mode == "guard" else []
    command += ["-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-p", "no:randomly", f"--junitxml={junit}", *peer.options, *peer.tests]
    path = os.environ.get("PYTHONPATH")
    folders = [str(source / folder) for folder in peer.folders]
    settings = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GRADEXT_")},
        "PYTHONPATH": os.pathsep.join(filter(None, [*folders, path])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "EINOPS_TEST_BACKENDS": "torch",
    }
    if mode == "record":
        settings |= {"GRADEXT_RECORD": "1", "GRADEXT_JSON": str(found)}
    with log.open("w") as text:
        child = subprocess.Popen(
            command, cwd=source, env=settings, stdout=text, stderr=subprocess.STDOUT
        )
        used = wait(child, peer.timeout)
    text_of = log.read_text(errors="replace")
    own = [m[1] for m in map(OWN.match, text_of.splitlines()) if m]
    return Outcome(
        outcomes(junit),
        round(used.ru_utime + used.ru_stime, 2),
        round(used.ru_maxrss / 1024, 1),
        child.returncode,
        own,
        json.loads(found.read_text())["diagnoses"] if found.exists() else [],
        text_of,
    )


def wait(child: subprocess.Popen[bytes], timeout: int) -> Any:
    """What the child used, its own children's time with it; it is killed after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return used
        if time.monotonic() > deadline:
            child.kill()
        time.sleep(0.05)


def outcomes(junit: Path) -> dict[str, str]:
    """Outcome by test; one that stands there twice (parametrized alike) is numbered."""
    if not junit.exists():
        return {}
    found: dict[str, str] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        test = name = f"{case.get('classname')}::{case.get('name')}"
        for k in range(2, 1000):
            if name not in found:
                break
            name = f"{test} #{k}"
        kinds = {child.tag for child in case}
        bad = kinds & {"failure", "error"}
        found[name] = "failed" if bad else "skipped" if "skipped" in kinds else "passed"
    return found


def compare(name: str, modes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """One row for each mode: its counts, and what it is to plain."""
    plain = modes.get("plain")
    rows = []
    for mode, this in modes.items():
        counts = collections.Counter(this.tests.values())
        row: dict[str, Any] = {"peer": name, "mode": mode, "tests": len(this.tests)}
        row |= {kind: counts[kind] for kind in COUNTED}
        row |= {"seconds": this.seconds, "MB": this.megabytes, "exit code": this.exit_code}
        if plain is not None and mode != "plain":
            every = sorted(plain.tests.keys() | this.tests.keys())
            row["different"] = [
                f"{test}: {plain.tests.get(test, 'absent')}, then {this.tests.get(test, 'absent')}"
                for test in every
                if plain.tests.get(test) != this.tests.get(test)
            ]
            row["time"] = round(this.seconds / plain.seconds, 2)
            row["memory"] = round(this.megabytes / plain.megabytes, 2)
            row["own errors"] = this.own
            tally = collections.Counter(f"{at['severity']} {at['code']}" for at in this.found)
            row["findings"] = dict(sorted(tally.items()))
        rows.append(row)
    return rows


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """Why the run is no success, one line each."""
    lines = []
    for row in rows:
        where = f"{row['peer']}, {row['mode']}"
        if row["tests"] == 0:
            lines.append(f"{where}: no test ran (exit code {row['exit code']})")
        lines += [f"{where}: {test}" for test in row.get("different", ())]
        lines += [f"{where}: gradext's own error: {line}" for line in row.get("own errors", ())]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--modes", default=",".join(MODES), help="of plain,record,run,guard")
    parser.add_argument("--work", type=Path, help="where downloads and results go (build/peers)")
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME=FOLDER", help="a peer's source"
    )
    parser.add_argument("--out", type=Path, help="JSON whose rows of these peers are replaced")
    options = parser.parse_args()
    modes = options.modes.split(",")
    given = {name: Path(at).resolve() for name, _, at in (s.partition("=") for s in options.source)}
    unknown = [name for name in (*options.names, *given) if name not in PEERS]
    unknown += [mode for mode in modes if mode not in MODES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    names = options.names or [name for name in PEERS if PEERS[name].version or name in given]
    work = (options.work or ROOT / "build" / "peers").resolve()
    work.mkdir(parents=True, exist_ok=True)
    # As pip does it: the peers' processes write no bytecode, and would compile gradext each time.
    compileall.compile_dir(ROOT / "gradext", quiet=2)
    rows: list[dict[str, Any]] = []
    try:
        for name in names:
            peer = PEERS[name]
            source = source_of(name, peer, work, given)
            python = environment(name, peer, work)
            done = {}
            for mode in modes:
                done[mode] = this = run_mode(name, peer, mode, source, python, work)
                print(
                    f"{name} {mode}: {len(this.tests)} tests, {this.seconds} s, "
                    f"{this.megabytes} MB, exit code {this.exit_code}",
                    flush=True,
                )
            rows += compare(name, done)
    except Unavailable as error:
        print(f"run_peers: {error}", file=sys.stderr)
        return 2
    for row in rows:
        if row["mode"] != "plain" and "time" in row:
            print(
                f"{row['peer']} {row['mode']}: {len(row['different'])} outcomes differ, "
                f"time {row['time']}, memory {row['memory']}, findings {row['findings']}"
            )
    if options.out:
        write(options.out, rows)
    wrong = faults(rows)
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    from gradext.mode_costs import machine

    names = {row["peer"] for row in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in old if row["peer"] not in names] + rows
    rows.sort(key=lambda row: (list(PEERS).index(row["peer"]), MODES.index(row["mode"])))
    found = {"benchmark": "peers", "machine": machine.record(ROOT), "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
