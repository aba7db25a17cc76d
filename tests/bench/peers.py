"""litejobs beside other embedded queues: the same work, in turns.

Each peer has an environment of its own, made once in the user's cache folder, and a program in the
folder `peer`. Each run is a fresh queue in a fresh folder. A peer that cannot be installed, or that
fails, is left out, with a line that says why.
"""

import contextlib
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from litejobs import LiteJobs

from .measure import Figure, number, queue, seconds

PROGRAMS = Path(__file__).with_name("peer")
NOTE = struct.Struct("=qq")
"""What each job notes: its number, and when it began (see `peer/trial.py`)."""
WARM_UP = 100
"""Jobs that are run before those that count."""
TIMEOUT = 30
"""Seconds that a program may take beyond the time that it was given."""
MIN_SAMPLES = 5
"""Samples of the time to wake without which there is no median."""
INSTALLATION = 300
"""Seconds that an installation may take."""


@attrs.frozen
class Peer:
    """Another queue, and how it is run."""

    name: str
    version: str
    program: str
    more: tuple[str, ...] = ()
    """Packages that it needs beside its own."""
    how: str = "at its defaults"
    aim: float = 20
    """How many times as many jobs a second litejobs should run."""
    gates: int = 2
    """How many jobs fill its workers; 0 if nothing does, and its program waits instead."""
    tuned: bool = False

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"

    @property
    def in_javascript(self) -> bool:
        """Whether Node runs it."""
        return self.program.endswith(".mjs")


PEERS = (
    Peer("huey", "3.5.4", "huey_"),
    Peer("huey", "3.5.4", "huey_", how="synchronous off, 5 ms poll", aim=4, tuned=True),
    Peer("litequeue", "0.9", "litequeue_"),
    Peer("persist-queue", "1.1.0", "persist_queue_"),
    Peer("tinyjobs", "0.6.0", "tinyjobs_", gates=16),
    Peer("FlexiQ", "2.1.0", "flexiq_"),
    Peer("honker", "0.5.0", "honker_"),
    Peer("DBOS", "3.4.0", "dbos_", gates=0),
    Peer("plainjob", "0.0.14", "plainjob.mjs", more=("better-sqlite3@12.9.0",), aim=5),
)


@attrs.frozen
class Plan:
    """How much is asked of each queue, and the seconds after which less has to do."""

    rounds: int
    jobs: int
    samples: int
    enqueueing: float
    running: float
    waking: float


QUICK = Plan(rounds=1, jobs=2_000, samples=20, enqueueing=10, running=15, waking=4)
FULL = Plan(rounds=3, jobs=20_000, samples=50, enqueueing=20, running=30, waking=10)


@attrs.frozen
class Taken:
    """What one run of one queue gave."""

    enqueued: float
    """Jobs a second."""
    run: float
    """Jobs a second."""
    woke: float | None
    """Milliseconds; None if there was no time for a few samples."""


Pairs = Sequence[tuple[Taken, Taken]]
"""Ours and theirs, round by round."""


class LeftOut(Exception):
    """Why a queue is not measured."""


def peers(quick: bool) -> Iterator[Figure]:
    """Other embedded queues: the same jobs, enqueued one by one, run by two workers."""
    plan = QUICK if quick else FULL
    ours = Contestant("litejobs", [sys.executable, "-m", "bench.peer", "litejobs_"], ours=True)
    theirs: dict[Peer, Contestant] = {}
    for peer in PEERS:
        with _or_left_out(peer):
            theirs[peer] = _contestant(peer)
    pairs: dict[Peer, list[tuple[Taken, Taken]]] = {peer: [] for peer in theirs}
    for _ in range(plan.rounds):
        own = ours.measure(plan)
        for peer, contestant in list(theirs.items()):
            del theirs[peer]
            with _or_left_out(peer):
                pairs[peer].append((own, contestant.measure(plan)))
                theirs[peer] = contestant
    for figures in (_run, _enqueued, _woke):
        for peer, taken in pairs.items():
            yield from figures(peer, taken)


@contextlib.contextmanager
def _or_left_out(peer: Peer) -> Iterator[None]:
    """Says in a line why a peer could not be measured; it is not tried again."""
    try:
        yield
    except (LeftOut, OSError, ValueError) as error:
        print(f"{peer.title} ({peer.how}) is left out: {error}", flush=True)


def enqueue_beside_huey(quick: bool) -> Iterator[Figure]:
    """One job a call, each call durable (synchronous=FULL), in turns in one process with huey."""
    peer = next(peer for peer in PEERS if peer.name == "huey")
    with _or_left_out(peer):
        folder = _installed(peer, _install_from_pypi)
        sys.path += [str(path) for path in folder.glob("lib/python*/site-packages")]
        from huey import SqliteHuey

        with queue("full") as jobs:
            from .work import noop

            file = Path(jobs.path).with_name("huey.db")
            huey = SqliteHuey(filename=str(file), fsync=True)

            @huey.task()  # type: ignore[untyped-decorator]
            def task(n: int) -> None:
                pass

            rates: list[tuple[float, float]] = []
            for _ in range(40 if quick else 120):
                rates.append((rate(noop.enqueue), rate(task)))
            huey.storage.close()
        ours, theirs = zip(*rates, strict=True)
        what = "enqueue, one by one, durability full"
        yield Figure(what, "jobs/s", ours, f"{peer.title}, fsync", theirs, ("at least", 1))


def rate(enqueue: Callable[[int], object]) -> float:
    """Jobs a second, one by one, of a hundred after a first one."""
    enqueue(0)
    return 100 / seconds(lambda: [enqueue(n) for n in range(100)])


# Figures


def _run(peer: Peer, pairs: Pairs) -> Iterator[Figure]:
    if pairs:
        yield Figure(
            f"no-op jobs run, two workers, beside {peer.name}, {peer.how}",
            "jobs/s",
            [ours.run for ours, _ in pairs],
            peer.title,
            [theirs.run for _, theirs in pairs],
            ("at least", peer.aim),
        )


def _enqueued(peer: Peer, pairs: Pairs) -> Iterator[Figure]:
    if pairs:
        yield Figure(
            f"jobs enqueued one by one, beside {peer.name}, {peer.how}",
            "jobs/s",
            [ours.enqueued for ours, _ in pairs],
            peer.title,
            [theirs.enqueued for _, theirs in pairs],
        )


def _woke(peer: Peer, pairs: Pairs) -> Iterator[Figure]:
    woke = [(a.woke, b.woke) for a, b in pairs if a.woke is not None and b.woke is not None]
    if woke:
        yield Figure(
            f"from enqueue to the handler, idle, beside {peer.name}, {peer.how}",
            "ms",
            [ours for ours, _ in woke],
            peer.title,
            [theirs for _, theirs in woke],
            upside_down=True,
        )


# Environments


def _contestant(peer: Peer) -> "Contestant":
    """A peer that is installed and can be run."""
    if peer.in_javascript:
        folder = _installed(peer, _install_from_npm)
        # A copy, since Node looks for packages from where a program stands.
        program = shutil.copy(PROGRAMS / peer.program, folder)
        return Contestant(peer.title, [_found("node"), str(program)], peer.gates)
    python = _python(_installed(peer, _install_from_pypi))
    command = [str(python), "-m", "bench.peer", peer.program]
    return Contestant(peer.title, command, peer.gates, peer.tuned)


def _installed(peer: Peer, install: Callable[[Peer, Path], None]) -> Path:
    """The folder of a peer's own environment; it is made if it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "litejobs-bench")
    runtime = "node" if peer.in_javascript else "python{}.{}".format(*sys.version_info)
    folder = cache / "-".join([peer.name, peer.version, runtime])
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(peer, folder)
        complete.touch()
    return folder


def _install_from_pypi(peer: Peer, folder: Path) -> None:
    _call([sys.executable, "-m", "venv", str(folder)], folder, INSTALLATION)
    options = ["--quiet", "--disable-pip-version-check"]
    packages = [f"{peer.name}=={peer.version}", *peer.more]
    pip = [str(_python(folder)), "-m", "pip", "install"]
    _call([*pip, *options, *packages], folder, INSTALLATION)


def _install_from_npm(peer: Peer, folder: Path) -> None:
    options = ["--no-audit", "--no-fund", "--prefix", str(folder)]
    packages = [f"{peer.name}@{peer.version}", *peer.more]
    _call([_found("npm"), "install", *options, *packages], folder, INSTALLATION)


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise LeftOut(f"there is no {program}")
    return path


def _python(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


# Processes


@contextlib.contextmanager
def _process(
    command: Sequence[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes to the files *out* and *err*; when it ends or is not wanted any
    more, all that it started ends with it."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session: nobody else is in it
        process.wait()


def _call(
    command: Sequence[str], folder: Path, seconds: float, environment: dict[str, str] | None = None
) -> list[str]:
    """What a command prints, line by line."""
    with _process(command, folder, environment or {}) as process:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LeftOut(f"{Path(command[0]).name} took more than {seconds:.0f} s") from None
    if status:
        raise LeftOut(_last_words(folder))
    return (folder / "out").read_text().splitlines()


def _last_words(folder: Path) -> str:
    """The line of what a program wrote last that most likely says what was wrong."""
    lines = (folder / "err").read_text(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()] or ["it ended without a word"]
    errors = [line for line in lines if "error" in line.casefold()]
    return (errors or lines)[-1]


# Runs


@attrs.frozen
class Contestant:
    """A queue that can be run, ours among them: all are run and measured in the same way."""

    title: str
    command: Sequence[str]
    gates: int = 2
    tuned: bool = False
    ours: bool = False

    def measure(self, plan: Plan) -> Taken:
        """Enqueues a backlog, has it run by warm workers, and then wakes them, idle."""
        with tempfile.TemporaryDirectory(
            dir=".", prefix="bench-", ignore_cleanup_errors=True
        ) as name:
            folder = Path(name).resolve()
            (folder / "work").mkdir()
            limit = plan.enqueueing + TIMEOUT
            lines = self._say(folder, limit, "enqueue", plan.jobs, plan.enqueueing, self.gates)
            jobs, seconds = map(float, lines[-1].split())
            command = [*self.command, "work"]
            with _process(command, folder / "work", self._environment(folder)) as workers:
                done, rate = self._drain(folder, workers, int(jobs), plan.running)
                woke = None
                if done == jobs:
                    limit = plan.waking + TIMEOUT
                    lines = self._say(folder, limit, "wake", plan.samples, plan.waking)
                    woke = (
                        statistics.median(map(float, lines)) if len(lines) >= MIN_SAMPLES else None
                    )
        if done < plan.jobs:
            said = f"{number(jobs)} jobs enqueued and {number(done)} run in the time there is"
            print(f"{self.title}: of {number(plan.jobs)} jobs, {said}", flush=True)
        return Taken(jobs / seconds, rate, woke)

    def _say(self, folder: Path, limit: float, *words: object) -> list[str]:
        """What its program answers."""
        command = [*self.command, *map(str, words)]
        return _call(command, folder, limit, self._environment(folder))

    def _environment(self, folder: Path) -> dict[str, str]:
        """What its program has to know. Its own interpreter comes first, as in an activated
        environment: FlexiQ starts its workers with the `python` that it finds."""
        path = os.pathsep.join([str(Path(self.command[0]).parent), os.environ.get("PATH", "")])
        return {
            "PATH": path,
            "PYTHONPATH": str(PROGRAMS.parents[1]),
            "PEER_FOLDER": str(folder),
            "PEER_TUNED": "yes" if self.tuned else "no",
        }

    def _drain(
        self, folder: Path, workers: subprocess.Popen[bytes], jobs: int, seconds: float
    ) -> tuple[int, float]:
        """How many jobs of the backlog were run, and how many a second, first to last.

        A job counts by the note that its handler appends, one write of 16 bytes without a sync,
        the same for all. To ask the stores would put a reader beside the workers, and huey's
        keeps nothing of a job that is done. For litejobs alone the end is later: when its file
        says that all are completed.
        """
        until = time.monotonic() + TIMEOUT
        while sum(n < 0 for n, _ in _notes(folder)) < max(self.gates, 1):
            _nap(0.1, workers, folder, until)
        time.sleep(0.5)
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(LiteJobs(folder / "jobs.db")) if self.ours else None
            opened = time.monotonic_ns()
            (folder / "open").touch()
            until = time.monotonic() + seconds
            size = NOTE.size * (WARM_UP + max(self.gates, 1) + jobs)
            while (folder / "notes").stat().st_size < size and time.monotonic() < until:
                _nap(0.002, workers, folder, until + 1)
            while store and store.count(state="completed") < WARM_UP + self.gates + jobs:
                _nap(0.002, workers, folder, until + 1)
            end = time.monotonic_ns()
        begun = _begun(folder, opened)
        last = end if self.ours else begun[-1]
        return len(begun), (len(begun) - 1) / (last - begun[0]) * 1e9


def _nap(seconds: float, workers: subprocess.Popen[bytes], folder: Path, until: float) -> None:
    """A pause, if there is still something to wait for."""
    if workers.poll() is not None:
        raise LeftOut(_last_words(folder / "work"))
    if time.monotonic() > until:
        raise LeftOut("its workers did not do what they should in time")
    time.sleep(seconds)


def _notes(folder: Path) -> list[tuple[int, int]]:
    """Number and beginning of all jobs so far; the last may be half written."""
    notes = (folder / "notes").read_bytes()
    whole = len(notes) - len(notes) % NOTE.size
    return [(n, began) for n, began in NOTE.iter_unpack(notes[:whole])]


def _begun(folder: Path, opened: int) -> list[int]:
    """When each job of the backlog first began, in order, after the gates were opened."""
    first: dict[int, int] = {}
    for n, began in _notes(folder):
        if n > 0 and began > opened:
            first.setdefault(n, began)
    if len(first) < 2:
        raise LeftOut("its workers ran no jobs")
    return sorted(first.values())
