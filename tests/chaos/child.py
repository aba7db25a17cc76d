"""A forked child that does something, and may die of it, and what it said until then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import attrs

from .ordeal import Run, Violation

CAN_FORK = hasattr(os, "fork")
TIMEOUT = 30
"""Seconds after which something hangs, that takes a fraction of one."""

Say = Callable[[Any], None]


@attrs.frozen
class Ended:
    """A child that has ended."""

    exitcode: int
    """Negative: by which signal."""
    said: list[Any]

    def expect(self, run: Run, exitcodes: tuple[int, ...], what: str) -> None:
        """Raises Violation, if it ended in another way than one of these."""
        if self.exitcode == -signal.SIGALRM:
            run.violated(f"{what}: it hung for {TIMEOUT} s, after {self.said[-1:]}")
        if self.exitcode not in exitcodes:
            run.violated(f"{what}: it ended with {self.exitcode}: {self.said[-1:]}")


def in_child(do: Callable[[Say], None]) -> Ended:
    """Lets a child do that; it can *say* what JSON can. (No thread may run here, and no
    connection be open.)"""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _do_and_exit(do, theirs)
    os.close(theirs)
    with open(ours, encoding="utf-8") as pipe:
        # The last line may be half a one.
        said = [json.loads(line) for line in pipe if line.endswith("\n")]
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said)


def _do_and_exit(do: Callable[[Say], None], pipe: int) -> NoReturn:
    """Whatever happens: the parent's code that comes next is not for the child."""

    def say(what: Any) -> None:
        with open(pipe, "w", encoding="utf-8", closefd=False) as file:
            file.write(json.dumps(what) + "\n")

    signal.alarm(TIMEOUT)
    try:
        do(say)
    except BaseException:
        say(traceback.format_exc())
        os._exit(1)
    os._exit(0)


@contextlib.contextmanager
def within_timeout(what: str) -> Iterator[None]:
    """Raises Violation, if the block hangs or lets out any other error."""

    def hung(number: int, frame: object) -> NoReturn:
        raise Violation(f"{what}: it hung for {TIMEOUT} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(TIMEOUT)
    try:
        yield
    except Violation:
        raise
    except Exception:
        raise Violation(f"{what}: {traceback.format_exc()}") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
