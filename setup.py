"""Builds gradext._C for the torch that build_tools/torch_finder.py finds.

Owns the compiled part and what depends on torch's version; pyproject.toml has the rest.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))

import compiling  # noqa: E402
import extension  # noqa: E402
import preflight  # noqa: E402
import torch_finder  # noqa: E402

# These commands compile nothing, and an isolated build runs them before torch is there to import.
METADATA_ONLY = any(word in {"egg_info", "dist_info", "sdist"} for word in sys.argv[1:])
# A source distribution is for no torch in particular; whatever builds it names one.
TORCH = "torch>=2.11" if "sdist" in sys.argv else torch_finder.find().requirement


class CleanBuild(build):  # type: ignore[misc]
    """Starts from an empty build/lib: a module deleted since the last build must not be packed."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildPython(build_py):  # type: ignore[misc]
    """Packs the benchmark scripts, which `gradext bench` runs where there is no checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the checkout is there
        folder = Path(self.build_lib) / "gradext" / "_benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        for script in sorted((ROOT / "benchmarks").glob("*.py")):
            shutil.copyfile(script, folder / script.name)


def say(text: str) -> None:
    """On stderr at once: pip -v and other front ends show it while the compilers run."""
    print(f"gradext: {text}", file=sys.stderr, flush=True)


def extension_arguments() -> dict[str, object]:
    """ext_modules and cmdclass, which need torch imported."""
    import torch

    home = extension.toolkit_home()
    if home is not None:
        os.environ["CUDA_HOME"] = str(home)  # torch's cpp_extension reads it when it is imported
    from torch.utils import cpp_extension

    cuda = extension.decide_cuda(torch.version.cuda, home)
    with_cuda = "with" if cuda.build else "without"
    say(f"building for torch {torch.__version__} {with_cuda} CUDA: {cuda.why}")
    if cuda.build:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", extension.architectures(cuda.toolkit))

    class BuildC(cpp_extension.BuildExtension):  # type: ignore[misc]
        def finalize_options(self) -> None:
            super().finalize_options()
            # Objects of another torch, Python or CUDA choice must not be reused, nor a linked _C.
            kind = "cuda" if cuda.build else "cpu"
            kind += "".join(f"-{name}" for name in checks.split(",") if name)
            self.build_temp = os.path.join(self.build_temp, f"torch-{torch.__version__}-{kind}")
            self.force = True

        def run(self) -> None:
            preflight.check(torch.__version__, ROOT)
            if os.name == "posix":
                # One program compiles and links; the linker's would be the one that built Python.
                os.environ["CXX"] = shlex.join(preflight.compiler())
            at_once = preflight.jobs()
            os.environ["MAX_JOBS"] = str(at_once)
            units = len(self.extensions[0].sources)
            say(f"compiling {units} units, {min(at_once, units)} at a time, in a few minutes")
            with compiling.watched():
                super().run()
            name = self.get_ext_filename("gradext._C")
            for folder in {Path(self.build_lib), ROOT} if self.inplace else {Path(self.build_lib)}:
                library = folder / name
                if library.is_file():
                    write_build_record(library, torch, cuda)

    checks = extension.sanitizers()
    kind = cpp_extension.CUDAExtension if cuda.build else cpp_extension.CppExtension
    torch_folder = Path(torch.__file__).resolve().parent
    module = kind(
        name="gradext._C",
        sources=extension.sources(cuda.build),
        depends=[str(path) for path in (ROOT / "csrc").rglob("*.h")],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=extension.compile_flags(torch_folder, cuda.build),
        extra_link_args=[f"-fsanitize={checks}"] if checks else [],
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildC, "build": CleanBuild, "build_py": BuildPython},
    }


def write_build_record(library: Path, torch: Any, cuda: extension.Cuda) -> None:
    """What `library` was built for, in a file beside it: readable without loading it."""
    # The reader of this record also knows how to hash the sources; loaded without the package.
    reader = torch_finder.load_alone("native/build")
    record = {
        "torch": torch.__version__,
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "cuda": torch.version.cuda if cuda.build else None,
        "cuda_why": cuda.why,
        "cxx11_abi": torch.compiled_with_cxx11_abi(),
        "sources": reader.source_hash(ROOT / "csrc"),
    }
    reader.record_path(library).write_text(json.dumps(record, indent=1) + "\n")


setup(
    python_requires=torch_finder.versions.requires_python(),
    classifiers=[
        "Programming Language :: Python :: 3",
        *torch_finder.versions.classifiers(),
        "Programming Language :: C++",
        "Topic :: Software Development :: Debuggers",
    ],
    install_requires=[TORCH, "numpy>=1.26", "rich>=13"],
    **({} if METADATA_ONLY else extension_arguments()),
)
