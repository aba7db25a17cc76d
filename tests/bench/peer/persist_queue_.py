"""persist-queue with acknowledgements, a queue without workers: two threads.

Not processes: two of them take the same job, since a take is a SELECT and then an UPDATE.
"""

import threading
import time

from bench.peer import trial
from persistqueue import SQLiteAckQueue
from persistqueue.exceptions import Empty

queue = SQLiteAckQueue(str(trial.FOLDER), multithreading=True)


def enqueue(n: int) -> None:
    queue.put(n)


def consume() -> None:
    """One worker. The interval is ours: a waiting `get` sees only what its own process puts."""
    done = 0
    while True:
        try:
            item = queue.get(block=False, raw=True)
        except Empty:
            time.sleep(0.05)
            continue
        trial.run(item["data"])
        queue.ack(id=item["pqid"])
        done += 1
        if done % 500 == 0:  # as its README advises: each take looks at all that is done
            queue.clear_acked_data(max_delete=1000, keep_latest=0)


def work() -> None:
    threading.Thread(target=consume, daemon=True).start()
    consume()
