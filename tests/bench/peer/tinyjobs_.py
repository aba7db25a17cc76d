"""tinyjobs: two worker processes, each at its defaults, which are eight threads."""

import multiprocessing

from bench.peer import trial
from tinyjobs import TinyJobs

app = TinyJobs(f"sqlite:///{trial.FILE}")


@app.task
def job(n: int) -> None:
    trial.run(n)


def enqueue(n: int) -> None:
    job.enqueue(n)


def worker() -> None:
    app.worker().run()


def work() -> None:
    multiprocessing.get_context("spawn").Process(target=worker, daemon=True).start()
    worker()
