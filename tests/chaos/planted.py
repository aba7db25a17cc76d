"""Bugs that a queue could have, planted into copies of litejobs, and whether an ordeal sees them.

A checker that nobody has seen fail proves nothing.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import attrs

import litejobs

from .ordeal import VIOLATED, Ordeal, Run

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 60.0
"""Seconds for an ordeal to see a bug."""


BUGS = Path(__file__).with_name("bugs.toml")


class NotPlanted(AssertionError):
    """An edit does not fit the source; the message names the bug, the place and the snippet."""


@attrs.frozen(kw_only=True)
class Edit:
    """A change of one definition or constant: a snippet, the start or the whole of a body."""

    places: tuple[str, ...]
    """The ends of qualified names, of which at least one exists."""
    find: str | None = None
    put: str = ""
    start: str | None = None
    body: str | None = None

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Edit:
        fields = dict(fields)
        places = fields.pop("in")
        if len({"find", "start", "body"} & set(fields)) != 1:
            raise ValueError(f"an edit has either find, start or body: {fields}")
        return cls(places=(places,) if isinstance(places, str) else tuple(places), **fields)

    def changes(self, source: Source) -> list[Change]:
        """Where it fits: one change, if all is well."""
        nodes = [node for place in self.places for node in source.named(place)]
        if not nodes:
            elsewhere = source.holders(self.find) if self.find else []
            hint = f"; its snippet stands in {', '.join(elsewhere)}" if elsewhere else ""
            raise NotPlanted(f"there is no {' or '.join(self.places)}{hint}")
        if self.find is None:
            found = [source.change_body(node, self.start, self.body) for node in nodes]
            what = "is defined"
        else:
            found = [c for node in nodes for c in source.replace(node, self.find, self.put)]
            what = f"has the snippet {self.find!r}"
        found = list(dict.fromkeys(found))
        if len(found) != 1:
            elsewhere = [] if found or self.find is None else source.holders(self.find)
            hint = f"; it stands in {', '.join(elsewhere)}" if elsewhere else ""
            raise NotPlanted(f"{' or '.join(self.places)} {what} {len(found)} times{hint}")
        return found


Change = tuple[int, int, str]
"""From where to where, and the new text."""


@attrs.frozen(eq=False)
class Source:
    """A module's text, with its definitions and constants by qualified name."""

    text: str
    _nodes: dict[str, list[ast.stmt]]
    _lines: list[int]
    """Where each line begins."""

    @classmethod
    @functools.lru_cache(maxsize=4)
    def read(cls, text: str) -> Source:
        nodes: dict[str, list[ast.stmt]] = {}
        for name, node in definitions(ast.parse(text)):
            nodes.setdefault(name, []).append(node)
        lines = [0, *itertools.accumulate(len(line) + 1 for line in text.split("\n"))]
        return cls(text, nodes, lines)

    def named(self, place: str) -> list[ast.stmt]:
        """All whose qualified name ends like that."""
        names = [name for name in self._nodes if f".{name}".endswith(f".{place}")]
        return [node for name in names for node in self._nodes[name]]

    def replace(self, node: ast.stmt, snippet: str, new: str) -> list[Change]:
        """Each place within a definition where the snippet stands, whatever the whitespace."""
        begin, end = self._lines[node.lineno - 1], self._lines[cast(int, node.end_lineno)]
        tokens = list(TOKEN.finditer(self.text, begin, end))
        words, wanted = [token[0] for token in tokens], TOKEN.findall(snippet)
        return [
            self._change(tokens[at].start(), tokens[at + len(wanted) - 1].end(), new)
            for at in range(len(words) - len(wanted) + 1)
            if words[at : at + len(wanted)] == wanted
        ]

    def holders(self, snippet: str) -> list[str]:
        """The names of the innermost definitions in which the snippet stands."""
        found = {
            name
            for name, nodes in self._nodes.items()
            if not isinstance(nodes[0], ast.Assign | ast.AnnAssign)
            and any(self.replace(node, snippet, "") for node in nodes)
        }
        return sorted(n for n in found if not any(other.startswith(f"{n}.") for other in found))

    def change_body(self, node: ast.stmt, start: str | None, body: str | None) -> Change:
        """Statements before the first one of a function (its docstring apart), or instead of
        all."""
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            raise NotPlanted(f"line {node.lineno} does not define a function")
        first, *others = node.body
        if others and ast.get_docstring(node) is not None:
            first = others[0]
        begin = self._lines[first.lineno - 1] + first.col_offset
        if body is not None:
            return self._change(begin, self._lines[cast(int, node.end_lineno)] - 1, body)
        if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) and first.decorator_list:
            begin = self._lines[first.decorator_list[0].lineno - 1] + first.col_offset
        return self._change(begin, begin, f"{str(start).strip()}\n")

    def _change(self, begin: int, end: int, new: str) -> Change:
        """The text's lines are indented like the one that it begins in."""
        line = self.text[self.text.rindex("\n", 0, begin) + 1 : begin]
        indent = line[: len(line) - len(line.lstrip())]
        stripped = new.strip() if begin != end else new
        return begin, end, stripped.replace("\n", f"\n{indent}")


def definitions(node: ast.AST, within: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.stmt]]:
    """The functions, classes and constants in a tree, with their qualified names."""
    for inner in ast.iter_child_nodes(node):
        names: list[str] = []
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [inner.name]
        elif isinstance(inner, ast.Assign | ast.AnnAssign):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        for name in names:
            yield ".".join((*within, name)), cast(ast.stmt, inner)
        is_scope = names and not isinstance(inner, ast.Assign | ast.AnnAssign)
        yield from definitions(inner, (*within, *names) if is_scope else within)


TOKEN = re.compile(r"\w+|[-+*/|&^%<>=!:]=|[^\w\s]")


@attrs.frozen
class Bug:
    """A broken variant: what it does wrong, the ordeal that has to see it and how much of that
    is enough, and the edits that make it."""

    name: str
    about: str
    ordeal: str
    count: int
    edits: tuple[Edit, ...]

    @classmethod
    def read(cls, name: str, about: str, ordeal: str, edits: list[dict[str, Any]]) -> Bug:
        ordeal, count = ordeal.split()
        return cls(name, about, ordeal, int(count), tuple(map(Edit.read, edits)))

    def edit(self, text: str) -> str:
        """The broken source; whether that is still Python is not checked."""
        source, changes, problems = Source.read(text), [], []
        for edit in self.edits:
            try:
                changes += edit.changes(source)
            except NotPlanted as error:
                problems.append(str(error))
        if problems:
            raise NotPlanted(f"the bug {self.name} does not fit: {'; '.join(problems)}")
        for begin, end, new in sorted(changes, reverse=True):
            text = text[:begin] + new + text[end:]
        return text

    def plant(self, source: str) -> str:
        """The broken source, which is sure to compile."""
        broken = self.edit(source)
        try:
            compile(broken, f"<{self.name}>", "exec", dont_inherit=True)
        except SyntaxError as error:
            raise NotPlanted(f"the bug {self.name} does not compile: {error}") from error
        return broken


def bugs() -> list[Bug]:
    """All that are planted."""
    tables = tomllib.loads(BUGS.read_text())
    return [Bug.read(name, **table) for name, table in tables.items()]


def planted(run: Run) -> None:
    """Each of the bugs that are planted is seen by its ordeal, within a minute."""
    source, known = inspect.getsource(litejobs), bugs()
    for bug in run.dice.sample(known, min(run.count, len(known))):
        copy = run.folder / str(run.counts["bugs"])
        copy.mkdir()
        (copy / "litejobs.py").write_text(bug.plant(source))
        began = time.monotonic()
        output, throws = see(bug, copy, run.seed)
        run.expect(throws > 0, f"{bug.about}: not seen by {bug.ordeal}: {output}")
        run.counts["bugs"] += 1
        run.counts["throws"] += throws
        took = time.monotonic() - began
        print(f"  {bug.about}: seen by {bug.ordeal} in {took:.1f} s", flush=True)


def see(bug: Bug, copy: Path, seed: int) -> tuple[str, int]:
    """Has an ordeal run with the broken copy, with other dice until it sees the bug or the time
    is up: what it said last, and how many throws it took, 0 if it has seen nothing."""
    give_up = time.monotonic() + WITHIN
    for throw in itertools.count(1):
        output, status = face(bug, copy, seed + throw - 1, give_up - time.monotonic())
        if status == VIOLATED:
            return output, throw
        if status != 0 or time.monotonic() > give_up:
            break
    return output, 0


def face(bug: Bug, copy: Path, seed: int, patience: float) -> tuple[str, int]:
    """The same once: what it said, and its exit status."""
    # Without the current folder on its path, Python finds the copy before the original.
    paths = os.pathsep.join([str(copy), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    arguments = [bug.ordeal, "--seed", str(seed), "--count", str(bug.count)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(0.0, patience))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # So it can end what it has started.
        try:
            output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            litejobs.kill_group(process.pid)
            output, _ = process.communicate()
        return f"more than {WITHIN:.0f} s: {output}", -1
    return output, process.returncode


ORDEALS = (Ordeal(planted, quick=3, full=len(bugs()), unit="bugs"),)
