"""honker, its raw queue: two processes that claim, run and acknowledge."""

import asyncio
import multiprocessing

import honker
from bench.peer import trial

queue = honker.open(str(trial.FILE)).queue("jobs")


def enqueue(n: int) -> None:
    queue.enqueue({"n": n})


async def consume(name: str) -> None:
    async for job in queue.claim(name):
        trial.run(job.payload["n"])
        job.ack()


def worker(name: str) -> None:
    asyncio.run(consume(name))


def work() -> None:
    spawn = multiprocessing.get_context("spawn")
    spawn.Process(target=worker, args=("second",), daemon=True).start()
    worker("first")
