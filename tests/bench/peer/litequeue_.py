"""litequeue, a queue without workers: two processes that pop, run and mark as done."""

import multiprocessing
import time

from bench.peer import trial
from litequeue import LiteQueue

queue = LiteQueue(trial.FILE)


def enqueue(n: int) -> None:
    queue.put(str(n))


def consume() -> None:
    """One worker. The interval is ours, as the queue has none."""
    while True:
        message = queue.pop()
        if message is None:
            time.sleep(0.05)
        else:
            trial.run(int(message.data))
            queue.done(message.message_id)


def work() -> None:
    other = multiprocessing.get_context("spawn").Process(target=consume, daemon=True)
    other.start()
    consume()
