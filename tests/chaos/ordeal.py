"""What the ordeals share: how one is described, what it is given, and how it says what it found."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import attrs

VIOLATED = 3
"""The exit status of an ordeal that saw a promise broken."""


class Violation(AssertionError):
    """A promise that was not kept, in words that say which, and with the figures."""


@attrs.define(eq=False)
class Run:
    """One run of an ordeal: the seed of all its dice, how much to do, and where."""

    seed: int
    count: int
    folder: Path
    """Empty at first, on a real disk, and gone afterwards."""

    counts: Counter[str] = attrs.field(factory=Counter, init=False)
    """What was done, to be printed: kills, jobs, images."""

    dice: random.Random = attrs.field(init=False)
    began: float = attrs.field(factory=time.monotonic, init=False)

    @dice.default
    def _dice(self) -> random.Random:
        return random.Random(self.seed)

    def violated(self, what: str) -> NoReturn:
        raise Violation(what)

    def expect(self, kept: object, what: str) -> None:
        """Raises Violation with *what*, unless *kept*."""
        if not kept:
            self.violated(what)


@attrs.frozen
class Ordeal:
    """Something litejobs has to get through, in a quick form and a full one."""

    run: Callable[[Run], None]
    """Raises Violation. Its name is the ordeal's, its docstring's first line says what it shows."""

    quick: int
    full: int
    unit: str
    """What is counted: "kills", "images"."""

    @property
    def name(self) -> str:
        return self.run.__name__.replace("_", "-")

    @property
    def about(self) -> str:
        return (self.run.__doc__ or "").splitlines()[0]
