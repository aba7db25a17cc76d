"""Jobs that change what belongs to their whole process, and jobs that look at it."""

from __future__ import annotations

import contextlib
import contextvars
import decimal
import os
import signal
import stat
import subprocess
import sys
import tempfile
from typing import Any

from litejobs import define

if sys.platform != "win32":
    import resource

TENANT = contextvars.ContextVar("TENANT", default="none")


@define
def look() -> list[Any]:
    os.umask(umask := os.umask(0))
    handlers = [repr(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1)]
    blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    context = TENANT.get(), decimal.getcontext().prec
    timer = signal.getitimer(signal.ITIMER_REAL)[0]
    return [os.getpid(), os.getcwd(), umask, handlers, blocked, timer, *context]


@define
def change() -> int:
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.alarm(60)
    os.umask(0)
    os.chdir(tempfile.gettempdir())
    TENANT.set("another")
    decimal.getcontext().prec = 3
    return os.getpid()


@define
def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@define(max_attempts=1)
def terminate_a_program() -> int:
    with subprocess.Popen(["sleep", "60"]) as program:
        program.terminate()
        try:
            return program.wait(5)
        finally:
            program.kill()


@define
def close_folders() -> int:
    for number in map(int, os.listdir("/dev/fd")):
        try:
            if stat.S_ISDIR(os.fstat(number).st_mode):
                os.close(number)
        except OSError:
            pass  # That of the list itself.
    return os.getpid()


OPENED: list[int] = []


@define
def use_up_descriptors() -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            OPENED.append(os.open(os.devnull, os.O_RDONLY))
    return os.getpid()


@define
async def look_aside() -> list[Any]:
    return [os.getpid(), os.getcwd()]


@define
async def change_folder_aside() -> int:
    os.chdir(tempfile.gettempdir())
    return os.getpid()
