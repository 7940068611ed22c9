"""`gradext completion`: prints the script by which a shell completes gradext's command lines.

Made from the parsers of the commands, so that an option that is added is completed too. The
scripts start no Python: completing takes no longer than the shell itself.
"""

from __future__ import annotations

import argparse
import importlib
import re
from typing import Any, NamedTuple

from gradext.diagnosis.codes import CODES

SHELLS = ("bash", "zsh", "fish")
# What stands for a value in a usage line, and what that value is.
_FILES = {"FILE", "FILE.json", "SCRIPT", "DIR", "OLD.json"}
_CODES = {"CODE", "CODES"}
_RUN_PROGRAMS = {"run", "fix"}  # what stands behind the options is a program and its own words


class CompletionCommand:
    """Print the script by which bash, zsh or fish completes gradext's commands, options and codes.

    bash:  gradext completion bash > ~/.local/share/bash-completion/completions/gradext
    zsh:   gradext completion zsh > "${fpath[1]}/_gradext"
    fish:  gradext completion fish > ~/.config/fish/completions/gradext.fish
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", choices=SHELLS, help="which shell's")

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        print(_SCRIPTS[args.shell](commands()), end="")
        return 0


class Value(NamedTuple):
    """What may follow: `files`, or one of `words` (each with a description, which may be "")."""

    files: bool = False
    words: tuple[tuple[str, str], ...] = ()


class Option(NamedTuple):
    """An option: its flags, what it does, and its value; None where it takes none."""

    flags: tuple[str, ...]
    help: str
    value: Value | None


class Command(NamedTuple):
    """A subcommand, its options, and what else its line is made of."""

    name: str
    summary: str
    options: tuple[Option, ...]
    words: Value


def commands() -> list[Command]:
    """All of them, read from their parsers."""
    from gradext.commands import COMMANDS

    found = []
    for name, (module, kind, summary) in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"gradext {name}")
        getattr(importlib.import_module(module), kind)().prepare_parser(parser)
        actions = [a for a in parser._actions if a.help != argparse.SUPPRESS]  # noqa: SLF001
        options = tuple(
            Option(tuple(a.option_strings), _help(a), None if a.nargs == 0 else _value(a))
            for a in actions
            if a.option_strings
        )
        rest = [_value(a) for a in actions if not a.option_strings]
        words = rest[0] if rest else Value(files=name in _RUN_PROGRAMS)
        found.append(Command(name, summary, options, words))
    return found


def _value(action: argparse.Action) -> Value:
    if action.choices is not None:
        return Value(words=tuple((str(choice), "") for choice in action.choices))
    shown = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if shown in _CODES:
        return Value(words=tuple((code, row.name) for code, row in CODES.items()))
    return Value(files=shown in _FILES)


def _help(action: argparse.Action) -> str:
    return re.split(r"[;(]|: | - ", action.help or "")[0].strip().replace("%%", "%")


# --- bash -----------------------------------------------------------------------------------------


def _bash(found: list[Command]) -> str:
    values, options, words = [], [], []
    for command in found:
        flags = [flag for option in command.options for flag in option.flags]
        options.append(f'        {command.name}) options="{" ".join(flags)}" ;;')
        for option in command.options:
            if option.value is not None:
                which = "|".join(f"{command.name}:{flag}" for flag in option.flags)
                values.append(f"        {which}) {_bash_reply(option.value)}; return ;;")
        words.append(f"        {command.name}) {_bash_reply(command.words)} ;;")
    taking = " ".join(
        dict.fromkeys(
            flag for c in found for o in c.options if o.value is not None for flag in o.flags
        )
    )
    names = " ".join(command.name for command in found)
    return _BASH.format(
        names=names,
        taking=taking,
        values="\n".join(values),
        options="\n".join(options),
        words="\n".join(words),
        programs="|".join(sorted(_RUN_PROGRAMS)),
    )


def _bash_reply(value: Value) -> str:
    if value.words:
        words = " ".join(word for word, _ in value.words)
        return f'COMPREPLY=($(compgen -W "{words}" -- "$word"))'
    return 'compopt -o filenames; COMPREPLY=($(compgen -f -- "$word"))' if value.files else ":"


_BASH = """\
# Completes gradext's command lines; made by `gradext completion bash`.
_gradext() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}"
    local command="" target="" options="" at
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        if [[ -z $command ]]; then
            [[ ${{COMP_WORDS[at]}} == -* ]] || command="${{COMP_WORDS[at]}}"
        elif [[ ${{COMP_WORDS[at]}} != -* &&
            " {taking} " != *" ${{COMP_WORDS[at - 1]}} "* ]]; then
            target="${{COMP_WORDS[at]}}"
            break
        fi
    done
    if [[ -z $command ]]; then
        COMPREPLY=($(compgen -W "{names} --help --version" -- "$word"))
        return
    fi
    case $command in
        # Behind the program everything is its own.
        {programs}) [[ -z $target ]] || {{ compopt -o default; return; }} ;;
    esac
    case $command:$before in
{values}
    esac
    case $command in
{options}
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
        return
    fi
    case $command in
{words}
    esac
}}
complete -F _gradext gradext
"""


# --- zsh ------------------------------------------------------------------------------------------


def _zsh(found: list[Command]) -> str:
    described = " ".join(_quoted(f"{c.name}:{c.summary}") for c in found)
    cases = []
    for command in found:
        specs = [_zsh_option(option, flag) for option in command.options for flag in option.flags]
        if command.name in _RUN_PROGRAMS:
            specs.append("'*::program:_files'")
        else:
            specs.append(_quoted(f"*:argument:{_zsh_action(command.words)}"))
        cases.append(f"        {command.name}) _arguments -S {' '.join(specs)} ;;")
    return _ZSH.format(described=described, cases="\n".join(cases))


def _zsh_option(option: Option, flag: str) -> str:
    text = option.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
    spec = f"{flag}[{text}]"
    if option.value is not None:
        spec += f":value:{_zsh_action(option.value)}"
    return _quoted(spec)


def _zsh_action(value: Value) -> str:
    if value.words:
        words = [f"{word}\\:{about}" if about else word for word, about in value.words]
        return f"(({' '.join(words)}))" if value.words[0][1] else f"({' '.join(words)})"
    return "_files" if value.files else " "


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_ZSH = """\
#compdef gradext
# Completes gradext's command lines; made by `gradext completion zsh`.
_gradext() {{
    local curcontext="$curcontext" state line
    local -a commands
    _arguments -C '(- *)--version' '(- *)--help' '1:command:->command' '*::argument:->argument'
    if [[ $state == command ]]; then
        commands=({described})
        _describe command commands
        return
    fi
    case $line[1] in
{cases}
    esac
}}
if [[ $funcstack[1] == _gradext ]]; then
    _gradext "$@"
else
    compdef _gradext gradext
fi
"""


# --- fish -----------------------------------------------------------------------------------------


def _fish(found: list[Command]) -> str:
    lines = ["# Completes gradext's command lines; made by `gradext completion fish`."]
    first = "complete -c gradext -n __fish_use_subcommand"
    lines.append(f"{first} -f")
    for command in found:
        lines.append(f"{first} -f -a {command.name} -d {_fish_quoted(command.summary)}")
    lines.append(f"{first} -l version -d 'the version'")
    for command in found:
        of = f"complete -c gradext -n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            lines.append(f"{of} {_fish_flags(option)} -d {_fish_quoted(option.help)}")
        if command.words.words:
            lines.append(f"{of} -f -a {_fish_words(command.words)}")
        else:
            lines.append(of + (" -F" if command.words.files else " -f"))
    return "\n".join(lines) + "\n"


def _fish_flags(option: Option) -> str:
    kinds = []
    for flag in option.flags:
        long = flag.startswith("--")
        kinds.append(f"-l {flag[2:]}" if long else f"-s {flag[1:]}")
    if option.value is not None:
        kinds.append("-r")
        if option.value.words:
            kinds.append(f"-f -a {_fish_words(option.value)}")
        else:
            kinds.append("-F" if option.value.files else "-f")
    return " ".join(kinds)


def _fish_words(value: Value) -> str:
    # One word a line, its description behind a tab.
    words = "\\n".join(f"{word}\\t{about}" if about else word for word, about in value.words)
    return f"\"(printf '{words}')\""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: dict[str, Any] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
