"""FlexiQ: its prefork pool of two processes."""

from bench.peer import trial
from flexiq import Queue

queue = Queue(db_path=str(trial.FILE), workers=2)


@queue.task()
def job(n: int) -> None:
    trial.run(n)


def enqueue(n: int) -> None:
    job.delay(n)


def work() -> None:
    queue.run_worker(pool="prefork", app="bench.peer.flexiq_:queue")
