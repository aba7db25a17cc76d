"""huey on SQLite: its consumer with two worker processes.

Tuned, it gives up durability and idle CPU: synchronous off, and a look every 5 ms.
"""

import os
import sys

from bench.peer import trial
from huey import SqliteHuey

TUNED = os.environ.get("PEER_TUNED") == "yes"

huey = SqliteHuey(filename=str(trial.FILE), fsync=False if TUNED else None)


@huey.task()
def job(n: int) -> None:
    trial.run(n)


def enqueue(n: int) -> None:
    job(n)


def work() -> None:
    # Quiet: by default it logs two lines for each job, which nobody here reads.
    command = ["-m", "huey.bin.huey_consumer", "bench.peer.huey_.huey", "-q"]
    command += ["-k", "process", "-w", "2"]
    command += ["-d", "0.005", "-m", "0.005"] if TUNED else []
    os.execv(sys.executable, [sys.executable, *command])
