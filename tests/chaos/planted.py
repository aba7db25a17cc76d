"""Bugs that a queue could have, planted into copies of litejobs, and whether an ordeal sees them.

A checker that nobody has seen fail proves nothing.
"""

from __future__ import annotations

import inspect
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import attrs

import litejobs

from .ordeal import VIOLATED, Ordeal, Run

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 60.0
"""Seconds for an ordeal to see a bug."""


BUGS = Path(__file__).with_name("bugs")


@attrs.frozen
class Bug:
    """A broken variant: what it does wrong, the ordeal that has to see it and how much of that
    is enough, and the changes of the source."""

    about: str
    ordeal: str
    count: int
    changes: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> Bug:
        """A line about it, one that names the ordeal, and a patch, whose places are found by
        their text instead of by numbers of lines."""
        about, seen_by, *patch = path.read_text().splitlines()
        ordeal, count = seen_by.removeprefix("seen by: ").split()
        hunks = "\n".join(patch).split("\n@@\n")[1:]
        return cls(about, ordeal, int(count), tuple(map(sides, hunks)))

    def plant(self, source: str) -> str:
        """The broken source."""
        source = f"\n{source}"  # So that whole lines are found.
        for sound, broken in self.changes:
            found = source.count(f"\n{sound}")
            assert found == 1, f"{self.about}: {found} times in the source: {sound}"
            source = source.replace(f"\n{sound}", f"\n{broken}")
        return source


def sides(hunk: str) -> tuple[str, str]:
    """The text before a change, and after it."""
    lines = hunk.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    return before, after


def bugs() -> list[Bug]:
    """All that are planted."""
    return [Bug.read(path) for path in sorted(BUGS.glob("*.diff"))]


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
        litejobs.kill_group(process.pid)
        output, _ = process.communicate()
        return f"more than {WITHIN:.0f} s: {output}", -1
    return output, process.returncode


ORDEALS = (Ordeal(planted, quick=3, full=len(bugs()), unit="bugs"),)
