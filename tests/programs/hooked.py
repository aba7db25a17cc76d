"""Jobs with functions that are called after them."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from litejobs import Cancel, Constant, Context, Failure, define

from .trouble import note

AT_ONCE = Constant(0, jitter="none")


def tell_result(context: Context, result: object) -> None:
    note(context.job.payload["log"], f"success {context.job.name} {result}")


def tell_end(context: Context, failure: Failure | None) -> None:
    job, kind = context.job, failure and failure.kind
    note(job.payload["log"], f"{job.name} {job.state} {kind} {job.attempt}")


async def tell_end_later(context: Context, failure: Failure | None) -> None:
    await asyncio.sleep(0.001)
    tell_end(context, failure)


def end_worker(context: Context, failure: Failure | None) -> None:
    tell_end(context, failure)
    if not failure:
        os.kill(os.getpid(), signal.SIGKILL)


def hang(context: Context, failure: Failure | None) -> None:
    tell_end(context, failure)
    time.sleep(60)


@define(on_success=tell_result, on_end=tell_end)
def add(log: str, a: int) -> int:
    return a + 1


@define(on_success=tell_result, on_end=tell_end_later)
async def add_async(log: str, a: int) -> int:
    return a + 1


@define(max_attempts=2, backoff=AT_ONCE, on_success=tell_result, on_end=tell_end)
def fail(log: str) -> None:
    raise OSError("no disk")


@define(on_end=tell_end)
def cancel(log: str) -> None:
    raise Cancel


@define(max_attempts=1, timeout=0.2, on_end=tell_end_later)
async def rest_too_long(log: str) -> None:
    await asyncio.sleep(60)


@define(max_attempts=1, timeout=0.2, grace=0.1, on_end=tell_end)
def nap_too_long(log: str) -> None:
    time.sleep(60)


@define(max_attempts=2, backoff=AT_ONCE, on_end=tell_end)
def crash(log: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@define(max_attempts=1, max_memory="200MB", on_end=tell_end)
def devour(log: str) -> None:
    _ = b"x" * 400_000_000
    time.sleep(60)


@define(on_end=tell_end)
def nap(log: str, seconds: float) -> None:
    note(log, "nap")
    time.sleep(seconds)


@define(on_end=end_worker)
def add_badly(log: str, a: int) -> int:
    return a + 1


@define(timeout=0.2, grace=0.1, on_end=hang)
def add_slowly(log: str, a: int) -> int:
    return a + 1


DEFINITIONS = (
    add, add_async, fail, cancel, rest_too_long, nap_too_long, crash, devour, nap, add_badly,
    add_slowly,
)  # fmt: skip
