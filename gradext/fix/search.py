"""Looks for a patch: diagnoses the program, tries what strategies propose, puts them in order."""

from __future__ import annotations

import dataclasses
import difflib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradext.base import package
from gradext.fix import cost, notebook, order, proof, trial
from gradext.fix.proof import Verdict
from gradext.fix.stem import Stem
from gradext.fix.trial import Program, Ran
from gradext.reporters import places
from gradext.rules.rewrite import strategies
from gradext.rules.rewrite.strategies.case import Candidate, Case, Sources
from gradext.rules.rewrite.strategies.copies import writes_unrecorded
from gradext.source.edits import CannotEdit

_LONGEST_CHAIN = 4  # faults that one patch may have to mend, one after another
_CHEAPER = 2  # candidates that are tried after a verified one that costs something
_STEP = 1e-4  # by which leaves are moved
_RAW = ("GX401", "GX402")
_NO_DERIVATIVE = (
    "the write itself has no derivative, as in the program; whether it should, its author knows"
)
_MEANT = "what was cut off has gradients; whether the cut was meant, its author knows"


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate, and what came of it.

    Attributes:
        files: new text of each file that it changes, by path.
    """

    title: str
    files: dict[str, bytes]
    before: dict[str, bytes]
    verdict: Verdict
    copies: str = ""  # Candidate.copies
    notebook: str | None = None  # Program.notebook
    cuts: bool = False  # Candidate.cuts
    edges: int = 0  # Ran.edges_from the pass that failed

    @property
    def diff(self) -> str:
        """A unified diff of all its files, for `patch -p1` in the current folder."""
        lines: list[str] = []
        for path, new in self.files.items():
            old = self.before[path]
            if path == trial.COMMAND and self.notebook is not None:
                lines.append(notebook.diff(old.decode(), new.decode(), self.notebook))
                continue
            a, b = (
                text.decode("utf-8", "replace").splitlines(keepends=True) for text in (old, new)
            )
            name = places.relative(path).lstrip("/")
            lines += difflib.unified_diff(a, b, f"a/{name}", f"b/{name}")
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        problem: why nothing could be tried, in one line; None if something was.
        diagnosis: of the program as it is.
        tried: best first.
        runs: how often the program was run.
    """

    problem: str | None
    diagnosis: dict[str, Any] | None
    tried: tuple[Tried, ...]
    runs: int


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long to look.

    Attributes:
        tries: candidates that are run. seconds: for all of it.
        steps: backward passes after the failing one that a patched program has to make.
        codes: only these diagnoses; empty: any.
        dry: the candidates are listed, and none is run.
    """

    tries: int = 8
    seconds: float = 600.0
    steps: int = 3
    codes: frozenset[str] = frozenset()
    dry: bool = False


class Search:
    """One search. `say` is called with a line of progress before each run.

    Without `stem`, the first run is a plain process, and those after it are forks of a stem that is
    started beside it, where that is the same program.
    """

    def __init__(
        self,
        program: Program,
        limits: Limits,
        say: Callable[[str], None],
        stem: Stem | None = None,
    ) -> None:
        self.program, self.limits, self.say = program, limits, say
        self._ends = time.monotonic() + limits.seconds
        self._runs = 0
        self._guard = False
        self._stem = stem  # what further runs are forked from
        self._process = ""  # the one that failed, of those that the program starts
        self._references: dict[str, list[Ran]] = {}
        self._compared = False
        self._files: dict[str, bytes] = {}  # as they were when they were first read
        self._refused: dict[str, str] = {}

    def _run(self, **options: Any) -> Ran:
        self._runs += 1
        left = max(1.0, self._ends - time.monotonic())
        is_first = self._stem is None and not self.limits.dry
        started = Stem(trial.environment()) if is_first else None
        try:
            ran = trial.run(
                self.program,
                guard=self._guard,
                limit=left,
                more=self.limits.steps,
                stem=self._stem,
                **options,
            )
        except BaseException:
            if started is not None:
                started.close()
            raise
        if started is not None:
            started.admit(ran.circumstances)
            self._stem = started
        return ran.seen_by(self._process)

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self._ends

    def diagnose(self) -> tuple[Ran, dict[str, Any] | None]:
        """Run the program as it is; with the guard as well where nothing was found without."""
        self.say("running the program as it is")
        broken = self._run()
        chosen = self._chosen(broken)
        if chosen is None and broken.exit_code == 0 and not self._is_over:
            self.say("nothing was found; running it again, with --guard")
            self._guard = True
            broken = self._run()
            chosen = self._chosen(broken)
        process = broken.pids.get((chosen or {}).get("pid", 0))
        if process is not None:
            self.say(f"it fails in {process}, whose gradients are compared from here on")
            self._process = process
        return broken.seen_by(self._process), chosen

    def _chosen(self, ran: Ran) -> dict[str, Any] | None:
        wanted = [
            d for d in ran.diagnoses if not self.limits.codes or d["code"] in self.limits.codes
        ]
        errors = [d for d in wanted if d["severity"] == "error"]
        return next(iter(errors or wanted), None)

    def look(self) -> Found:
        """Diagnose, try, judge."""
        try:
            return self._look()
        finally:
            if self._stem is not None:
                self._stem.close()

    def _look(self) -> Found:
        broken, diagnosis = self.diagnose()
        if diagnosis is None:
            return Found(_nothing(broken), None, (), self._runs)
        given: dict[str, bytes] = {}
        if self.program.command is not None:
            given[trial.COMMAND] = self.program.command.encode()
        if self.limits.dry:
            return self._listed(broken, diagnosis, given)
        tried: list[Tried] = []
        self._try_all(broken, broken, diagnosis, given, "", tried)
        if not tried:
            return Found(self._why_none(diagnosis), diagnosis, (), self._runs)
        return Found(None, diagnosis, tuple(order.best_first(tried)), self._runs)

    def _listed(self, broken: Ran, diagnosis: dict[str, Any], given: Mapping[str, bytes]) -> Found:
        sources = Sources(given, package.is_user_file, self._files)
        found = []
        for candidate in strategies.propose(Case.of(diagnosis, broken.failed_at, sources)):
            try:
                texts = sources.patched(candidate)
            except CannotEdit:
                continue
            olds = {path: self._original(sources, path) for path in texts}
            changed = {path: text for path, text in texts.items() if text != olds[path]}
            verdict = Verdict(proof.UNTRIED, "it was not run")
            name = self.program.notebook
            found.append(Tried(candidate.title, changed, olds, verdict, candidate.copies, name))
            if len(found) >= self.limits.tries:
                break
        self._refused.update(sources.refused)
        why = None if found else self._why_none(diagnosis)
        return Found(why, diagnosis, tuple(found), self._runs)

    def _try_all(
        self,
        broken: Ran,
        failing: Ran,
        diagnosis: dict[str, Any],
        given: Mapping[str, bytes],
        before: str,
        tried: list[Tried],
        chain: tuple[str, ...] = (),
        undone: bool = False,
    ) -> None:
        """Try what is proposed for one diagnosis; then go on where another fault shows behind it.

        `failing` is the run that it is of: the broken program's, or that of an earlier patch, which
        `given` and `before` (its title) are of. `chain`: the codes that it mended. `undone`: it
        undoes a stop.
        """
        chain = (*chain, diagnosis["code"])
        sources = Sources(given, package.is_user_file, self._files)
        case = Case.of(diagnosis, failing.failed_at, sources)
        behind: list[tuple[Ran, str, dict[str, bytes], bool]] = []
        failed = True
        for candidate in strategies.propose(case):
            if len(tried) >= self.limits.tries or self._is_over or _is_done(tried, case):
                return
            if candidate.instead and not failed:
                continue
            good = [one.copies for one in tried if _is_verified(one)]
            if good and (not candidate.copies or candidate.copies in good):
                continue  # no cheaper
            try:
                texts = sources.patched(candidate)
            except CannotEdit:
                continue
            olds = {path: self._original(sources, path) for path in texts}
            if order.is_undone(olds, given, texts):
                continue
            candidate = dataclasses.replace(candidate, undoes_stop=candidate.undoes_stop or undone)
            title = f"{before}; then {candidate.title}" if before else candidate.title
            self.say(f"trying {len(tried) + 1} of at most {self.limits.tries}: {title}")
            ran = self._run(texts=texts, until=broken.failed + 1 + self.limits.steps)
            is_first = not any(map(_is_verified, tried))
            verdict = self._judged(broken, ran, diagnosis, candidate, texts, chain, is_first)
            if verdict.level == proof.VERIFIED and case.code in _RAW and writes_unrecorded(case):
                verdict = dataclasses.replace(verdict, level=proof.UNPROVED, why=_NO_DERIVATIVE)
            verdict = dataclasses.replace(verdict, cost=cost.compare(broken, ran))
            changed = {path: text for path, text in texts.items() if text != olds[path]}
            tried.append(
                Tried(
                    title,
                    changed,
                    olds,
                    verdict,
                    candidate.copies,
                    self.program.notebook,
                    candidate.cuts,
                    ran.edges_from(broken.failed),
                )
            )
            failed = verdict.level == proof.FAILS
            following = self._chosen(ran)
            if following is None or not (failed or verdict.why.startswith(proof.WARNS)):
                continue
            if _is_same(following, diagnosis) and ran.failed <= failing.failed:
                continue
            if following["code"] == diagnosis["code"] and len(chain) < _LONGEST_CHAIN:
                # This one is mended, and the next of its kind shows.
                stop = candidate.undoes_stop
                self._try_all(broken, ran, following, texts, title, tried, chain, stop)
            else:
                behind.append((ran, title, texts, candidate.undoes_stop))
        for ran, title, texts, stop in behind if len(chain) < _LONGEST_CHAIN else ():
            following = self._chosen(ran)
            if following is not None:
                self._try_all(broken, ran, following, texts, title, tried, chain, stop)
        self._refused.update(sources.refused)

    def _why_none(self, diagnosis: Mapping[str, Any]) -> str:
        said = f"{diagnosis['code']} is found, and no patch can be made"
        if self._is_over:
            return f"{said} in the time that there is; --time gives it more"
        why = next(iter(self._refused.values()), "no way to mend this form of it is known")
        return f"{said}: {why}"

    def _original(self, sources: Sources, path: str) -> bytes:
        if path == trial.COMMAND:
            return (self.program.command or "").encode()
        return sources.original(path) or b""

    def _by_differences(
        self,
        verdict: Verdict,
        broken: Ran,
        ran: Ran,
        candidate: Candidate,
        texts: Mapping[str, bytes],
    ) -> Verdict:
        if verdict.why.startswith(proof.WARNS):
            return verdict
        if candidate.undoes_stop:
            return dataclasses.replace(verdict, why=_MEANT)
        if self._compared:  # two runs for one search
            return dataclasses.replace(verdict, why="its gradients were compared with nothing")
        self._compared = True
        self.say("running it with its leaves moved, forth and back: is the gradient the loss's?")
        index = first = proof.target(broken)
        # What autograd.grad() computed on the way is a part of the loss.
        while first and any(broken.passes[first - 1].get("returned") or ()):
            first -= 1
        points = [
            self._run(texts=texts, until=index + 1, nudge=size, nudged=(index, first))
            for size in (_STEP, -_STEP)
        ]
        return proof.by_differences(verdict, broken, ran, points, _STEP)

    def _judged(
        self,
        broken: Ran,
        ran: Ran,
        diagnosis: Mapping[str, Any],
        candidate: Candidate,
        texts: Mapping[str, bytes],
        chain: Sequence[str],
        is_first: bool,
    ) -> Verdict:
        """What `candidate` is worth; `is_first`: no other one is verified so far."""
        code = diagnosis["code"]
        steps = self.limits.steps
        verdict = proof.judge(broken, ran, (), steps)
        if verdict.level != proof.FAILS:
            stands = next(
                (d for d in ran.diagnoses if _is_same(d, diagnosis) or _loses_same(d, diagnosis)),
                None,
            )
            if stands is not None:
                return Verdict(proof.FAILS, f"{code} is still there: {stands['message']}")
        mode = None if " as `ctx." in diagnosis["message"] else proof.reference_of(chain)
        if verdict.level == proof.UNPROVED and code in proof.BY_DIFFERENCES:
            return self._by_differences(verdict, broken, ran, candidate, texts)
        if verdict.level == proof.FAILS or mode is None:
            return verdict
        if mode not in self._references:
            self.say("running the reference: what the forward pass means")
            self._references[mode] = [self._run(mode=mode, until=broken.failed + 1 + steps)]
        known = self._references[mode]
        verdict = proof.judge(broken, ran, known, steps)
        if is_first and len(known) == 1 and proof.needs_second_reference(verdict):
            self.say("running the reference again: is it the same each time?")
            known.append(self._run(mode=mode, until=broken.failed + 1 + steps))
            verdict = proof.judge(broken, ran, known, steps)
        return verdict


def _is_done(tried: Sequence[Tried], case: Case) -> bool:
    """Whether a patch is found, and none that is cheaper is looked for any more."""
    first = next((n for n, one in enumerate(tried) if _is_verified(one)), None)
    if first is None:
        return False
    alone = case.code in proof.BY_DIFFERENCES  # a second one is not compared with anything
    cheapest = min(one.verdict.cost.key for one in tried if _is_verified(one))
    return alone or cheapest <= cost.NOTHING or len(tried) - first > _CHEAPER


def _is_verified(one: Tried) -> bool:
    return one.verdict.level == proof.VERIFIED


def _is_same(following: Mapping[str, Any], diagnosis: Mapping[str, Any]) -> bool:
    """Whether a patched program shows the fault that the patch was for.

    Its lines have moved, and the culprit's own has perhaps got more text.
    """
    texts = []
    for one in (following, diagnosis):
        first: dict[str, Any] = next(iter(one.get("culprits") or ()), {})
        texts.append(str(first.get("code") or "").strip())
    said = [re.sub(r"(:|\bline )\d+", "", one["message"]) for one in (following, diagnosis)]
    same = following["code"] == diagnosis["code"] and said[0] == said[1]
    return same and (texts[1] in texts[0] or texts[0] in texts[1])


_LOSES = re.compile(
    r"((?:`[^`]+`|\d+ more)(?:(?:, | and )(?:`[^`]+`|\d+ more))*) gets? no gradient"
)


def _loses_same(following: Mapping[str, Any], diagnosis: Mapping[str, Any]) -> bool:
    """Whether the same function of a patched program still keeps a gradient from the same leaves.

    By another line, or by another call: the loss is computed there as it was, without them.
    """
    if following["code"] != diagnosis["code"]:
        return False
    lost, functions = [], []
    for one in (following, diagnosis):
        text = " ".join([one["message"], *(one.get("notes") or ())])
        lost.append(
            {name for found in _LOSES.findall(text) for name in re.split(", | and ", found)}
        )
        first: dict[str, Any] = next(iter(one.get("culprits") or ()), {})
        functions.append((first.get("file"), first.get("function")))
    return bool(lost[1]) and lost[0] == lost[1] and functions[0] == functions[1]


def _nothing(broken: Ran) -> str:
    if broken.exit_code is None:
        return "the program did not end in time, and nothing was diagnosed; --time gives it more"
    error = broken.report.get("error")
    if broken.exit_code == 0:
        return "there is nothing to mend: the program ends well, and the guard finds nothing"
    last = [line for line in broken.error.splitlines() if line.strip()]
    said = error or (last[-1] if last else f"exit code {broken.exit_code}")
    return f"the program ends with what is no fault of autograd: {said}"
