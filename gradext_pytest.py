"""The plugin that pytest loads: its options, and the one test whether anybody asked for gradext.

Every pytest of an environment with gradext loads this file, so it imports nothing: what records
tests is gradext.integrations.pytest_plugin, which imports torch, and only where it was asked for.
"""

from __future__ import annotations

from typing import Any

MODES = ("off", "record", "light", "guard", "guard-all")
MARKER = (
    "gradext(guard=False, allow=()): record this test with gradext, with a guard (True or 'all') "
    "or without; findings with a code in `allow` are not told"
)


def pytest_addoption(parser: Any) -> None:
    """`--gradext` and what goes with it; the ini option `gradext` is its default."""
    group = parser.getgroup("gradext", "gradext: why autograd went wrong")
    group.addoption(
        "--gradext",
        nargs="?",
        const="record",
        choices=MODES,
        help="record each test: a failing one gets the report, one whose gradients are silently "
        "wrong fails; guard: compare the bytes of saved tensors too; guard-all: also where only "
        "torch has the memory; light: culprits only",
    )
    group.addoption(
        "--gradext-warn",
        action="store_true",
        help="warn of gradients that are silently wrong instead of failing the test",
    )
    group.addoption(
        "--gradext-json", metavar="FILE", help="write what was found to FILE, by test, as JSON"
    )
    parser.addini("gradext", f"record each test: one of {', '.join(MODES)}", default="off")
    parser.addini("gradext_allow", "codes of findings that are not told, as GX404", type="args")


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("markers", MARKER)
    mode = config.getoption("--gradext") or config.getini("gradext")
    if mode not in MODES:
        import pytest

        raise pytest.UsageError(f"gradext = {mode} in {config.inipath}: one of {', '.join(MODES)}")
    config.stash.setdefault(_mode(), mode)
    if mode != "off" or config.getoption("--gradext-json"):
        _load(config)


def pytest_collection_finish(session: Any) -> None:
    """A test that is marked is recorded without any option."""
    marks = [(item, mark) for item in session.items for mark in item.iter_markers("gradext")]
    for item, mark in marks:
        takes = not mark.args and set(mark.kwargs) <= {"allow", "guard"}
        if (
            not takes
            or not _is_guard(mark.kwargs.get("guard"))
            or isinstance(mark.kwargs.get("allow", ()), str)
        ):
            import pytest

            raise pytest.UsageError(
                f'{item.nodeid}: gradext\'s marker takes guard=True, "all" or False, and '
                'allow=["GX404"], nothing else'
            )
    if marks:
        _load(session.config)


def _is_guard(value: Any) -> bool:
    from gradext.recording.options import guard_reads

    try:
        guard_reads(value)
    except ValueError:
        return False
    return True


_KEY: Any = None


def _mode() -> Any:
    """The key under which the configuration keeps the mode."""
    global _KEY
    if _KEY is None:
        import pytest

        _KEY = pytest.StashKey[str]()
    return _KEY


def _load(config: Any) -> None:
    name = "gradext_recording_of_tests"
    if not config.pluginmanager.has_plugin(name):
        from gradext.integrations import pytest_plugin

        plugin = pytest_plugin.Plugin(config, config.stash[_mode()])
        config.pluginmanager.register(plugin, name)
