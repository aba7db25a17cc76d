"""Look on while jobs run: `python examples/watch.py`.

Middleware tells of each run, a callback of what goes wrong, and metrics sum up.
"""

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import TypeVar

from litejobs import Constant, Context, Event, LiteJobs, define

T = TypeVar("T")


@define(max_attempts=2, backoff=Constant(0))
def divide(a: int, b: int) -> float:
    return a / b


def shown(context: Context, call_next: Callable[[], T]) -> T:
    result = call_next()
    print(f"{context.job.payload} gave {result}", flush=True)
    return result


def complain(event: Event) -> None:
    print(f"job {event.job}, attempt {event.attempt}, {event.kind}: {event.error}", flush=True)


if __name__ == "__main__":
    with TemporaryDirectory() as folder, LiteJobs(f"{folder}/jobs.db") as jobs:
        jobs.register(divide)
        jobs.middleware.run(shown)
        jobs.on("retrying", "failed")(complain)
        jobs.enqueue_many(divide.bind(6, b) for b in (3, 2, 1, 0))
        jobs.work(workers=2, until="empty")
        *_, day = jobs.metrics("day", name="divide")
        print(f"{day.completed} completed, {day.retried} retried, {day.failed} failed")
