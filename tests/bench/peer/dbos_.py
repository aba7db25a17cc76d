"""DBOS on SQLite: one process, its own threads, no limit, as is its default."""

import functools
import threading

from bench.peer import trial
from dbos import DBOS

DBOS(
    config={
        "name": "bench",
        "system_database_url": f"sqlite:///{trial.FILE}",
        "log_level": "ERROR",
    }
)


@DBOS.workflow()
def job(n: int) -> None:
    trial.run(n)


@functools.cache
def launch_to_enqueue() -> None:
    DBOS.listen_queues([])
    DBOS.launch()
    DBOS.register_queue("jobs")


def enqueue(n: int) -> None:
    launch_to_enqueue()
    DBOS.enqueue_workflow("jobs", job, n)


def work() -> None:
    # It takes all that is due before it runs the first job, so gates would hold nothing back.
    trial.run(-1)
    DBOS.launch()
    DBOS.register_queue("jobs")
    threading.Event().wait()
