"""Sessions that CI does not run every time: other versions of torch, other ways to install.

nox -s 'tests(2.11)'     the tests against torch 2.11 (also 2.13, 2.15)
nox -s fuzz              10,000 damaged recording files of each kind
nox -s install           pip install ., -e ., pip wheel ., with and without isolation
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "venv"
TORCH = {"2.11": "2.11.0", "2.13": "2.13.0", "2.15": "2.15.0"}
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


@nox.session
def fuzz(session: nox.Session) -> None:
    """10,000 damaged recordings of each kind; about ten minutes."""
    session.install(f"torch=={TORCH['2.13']}")
    session.install(".[test]")
    session.run(
        *("python", "-m", "pytest", "tests/recorder/test_recording_file.py", *session.posargs),
        env={"HYPOTHESIS_PROFILE": "fuzz"},
    )


@nox.session
def install(session: nox.Session) -> None:
    """Each way to install, each followed by an import from the checkout and from elsewhere."""
    scratch = session.create_tmp()

    def works(folder: str) -> None:
        with session.chdir(folder):
            session.run(
                "python", "-c", "import gradext, torch; print(gradext.inspect(torch.ones(2)))"
            )
            session.run("gradext", "doctor")

    root = str(Path.cwd())
    session.install(f"torch=={TORCH['2.13']}", "numpy", "rich", "setuptools>=77", "ninja")
    for how in (["."], ["--no-build-isolation", "--no-deps", "."], ["-e", "."]):
        session.install(*how)
        works(root)
        works(scratch)
        session.run("pip", "uninstall", "-q", "-y", "gradext")
    session.run("pip", "wheel", "-q", "--no-deps", "-w", scratch, ".")
