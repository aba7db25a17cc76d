"""Forked processes that do what may crash or hang, some at a time, and say what came of it."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import attrs

Act = Callable[[mmap.mmap], Any]
"""What a child does. It may write down, in eight bytes, how far it has come."""


class Died(Exception):
    """A child ended without an answer; says how, and how far it had come."""

    def __init__(self, status: int, place: int) -> None:
        end = "hung" if status == -signal.SIGALRM else f"ended with {status}"
        super().__init__(f"a reader {end}")
        self.place = place


@attrs.define(eq=False)
class Child:
    """A process that does one thing."""

    pid: int
    pipe: Any
    mark: mmap.mmap

    @classmethod
    def start(cls, act: Act) -> Child:
        sys.stdout.flush()
        mark = mmap.mmap(-1, 8)
        listens, says = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(listens)
            try:
                _live(act, mark, says)
            finally:
                os._exit(70)
        os.close(says)
        return cls(pid, os.fdopen(listens, "rb"), mark)

    def answer(self) -> Any:
        """What the act gave.

        Raises:
            Died: the process did not live to say so.
        """
        with self.pipe:
            answer = self.pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if status != 0:
            raise Died(status, int.from_bytes(self.mark[:8], "big"))
        return pickle.loads(answer)


def _live(act: Act, mark: mmap.mmap, says: int) -> NoReturn:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answer = act(mark)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with open(says, "wb") as pipe:
        pickle.dump(answer, pipe)
    os._exit(0)


def answers(acts: Sequence[Act], at_once: int) -> Iterator[Any]:
    """What the acts give, in their order, so many of them being done at a time.

    Raises:
        Died: a child died; the others are ended.
    """
    children: list[Child] = []
    left = iter(acts)
    try:
        while True:
            while len(children) < at_once and (act := next(left, None)) is not None:
                children.append(Child.start(act))
            if not children:
                return
            yield children.pop(0).answer()
    finally:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
