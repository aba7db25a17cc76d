"""litejobs at its defaults: what is enqueued is on the disk; two worker processes."""

import os
import sys

from bench.peer import trial

from litejobs import LiteJobs

jobs = LiteJobs(trial.FILE)


@jobs.define
def job(n: int) -> None:
    trial.run(n)


@jobs.define
def gate(n: int) -> None:
    trial.run(n)


def enqueue(n: int) -> None:
    # A gate under the name of the short jobs would have them taken for long ones.
    (gate if n < 0 else job).enqueue(n)


def work() -> None:
    command = ["-m", "litejobs", "run", "bench.peer.litejobs_:jobs", "--workers", "2"]
    os.execv(sys.executable, [sys.executable, *command])
