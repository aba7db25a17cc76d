"""Hostile names: SQL, paths, escapes for terminals and markup in every string that one can give.

Each goes to one place of the programming interface, the command line or the file itself. It has to
come back as it was, or to be refused by an error of ours; nothing else in the file may change; and
what is printed, logged or raised may not hold anything that steers a terminal or forges a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apsw
import attrs

import litejobs
from litejobs import Cancel, Context, Fail, Job, LiteJobs, LitejobsError, Retry, Unique

from .ordeal import Ordeal, Run

FRAGMENTS = (
    *("'; DROP TABLE litejobs_job; --", "' OR '1'='1", '"', "`", "[", "]", "%", "_", "\\", ";"),
    *("') --", ":name", "?1", "@x", "$x", "/*", "*/", "--", "NULL", "x'00'", "litejobs_job"),
    *(
        "../",
        "..",
        "/",
        "~",
        "C:\\",
        "CON",
        "a" * 300,
        ".",
        "-",
        "--help",
        "-x",
        "=",
        ":",
        "app:jobs",
    ),
    *("\0", "\a", "\b", "\r", "\n", "\t", "\x1b[2J", "\x1b]0;owned\a", "\x1b[31m", "\x7f", "\x85"),
    *(
        "\x1b]8;;http://evil.example\x1b\\",
        "\x1b]52;c;bWU=\a",
        "\x9b31m",
        "\x9d0;owned\x9c",
        "\x0c",
    ),
    *("\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\u2028", "\u2029", "\udc80", "\ud800"),
    *("\nERROR forged", "\r\n", "<script>alert(1)</script>", "[bold red]", "%s", "%(name)s", "%n"),
    *("{0}", "{0.__class__}", "{", "}", '{"a": 1}', "&amp;", "]]>", "${HOME}", "$(id)", "`id`"),
    *(
        "é",
        "e\u0301",
        "ß",
        "🚀",
        "中文",
        "ﬁ",
        " ",
        "0",
        "1e5",
        "nan",
        "true",
        "UTC",
        "* * * * *",
    ),
)
BATCH = 200
"""Names after which everything else in the file is looked at."""
LONG_LINE = 100_000


def hostile(dice: random.Random) -> str:
    """A string of one to four parts, most of them from the dictionary."""
    parts = [dice.choice(FRAGMENTS) for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4)))]
    if dice.random() < 0.3:
        parts.insert(dice.randrange(len(parts) + 1), f"name{dice.randrange(1000)}")
    return "".join(parts)


def steers(text: str, lines: bool = True) -> str | None:
    """What in a text steers a terminal; with *lines*, it may have several, and tabs."""
    allowed = "\n\t" if lines else ""
    return next((repr(c) for c in text if not (c.isprintable() or c in allowed)), None)


class Listener(logging.Handler):
    """Collects what is logged, as it would be written; one line, but for a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        shown = record.getMessage()
        if wrong := steers(shown, lines=False):
            self.found.append(f"{wrong} in the line {shown!r}")
        whole = logging.Formatter("%(levelname)s %(name)s %(message)s").format(record)
        if wrong := steers(whole):
            self.found.append(f"{wrong} in the record {whole!r}")


def say(context: Context, how: str, text: str) -> str:
    """A job that says a hostile text, in one of the ways that there are."""
    context.progress(1, 2, text)
    if how == "return":
        return text
    if how == "retry":
        raise Retry(60, text)
    raise {"fail": Fail, "cancel": Cancel, "raise": ValueError}[how](text)


def hold(text: str, more: dict[str, Any] | None = None) -> None:
    """A job that has a hostile text in its payload."""


@attrs.define(eq=False)
class World:
    """A queue in the file of an application, with jobs that nobody has any business with."""

    run: Run
    jobs: LiteJobs = attrs.field(init=False)
    say: Any = attrs.field(init=False)
    hold: Any = attrs.field(init=False)
    files: int = 0
    fresh: int = 0
    untouched: Any = None

    def __attrs_post_init__(self) -> None:
        self.jobs = LiteJobs(self.run.folder / "jobs.db", durability="fast")
        self.say = self.jobs.define(queue="said", max_attempts=1)(say)
        self.hold = self.jobs.define(queue="held")(hold)
        for number in range(20):
            self.hold.using(queue="bystanders", delay=10**6, key=f"k{number}").enqueue(str(number))
        self.connection.execute("CREATE TABLE application (id INTEGER PRIMARY KEY, text TEXT)")
        self.connection.execute("INSERT INTO application (text) VALUES ('mine'), ('also mine')")
        self.untouched = self.rest()

    @property
    def connection(self) -> apsw.Connection:
        return self.jobs.store.file.connection()

    @property
    def file(self) -> str:
        return str(self.run.folder / "jobs.db")

    @property
    def dice(self) -> random.Random:
        return self.run.dice

    def rest(self) -> Any:
        """All that no hostile name has to do with: it must stay as it is."""
        queries = (
            "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name",
            "SELECT * FROM application",
            "SELECT * FROM litejobs_job WHERE queue = 'bystanders'",
            "SELECT * FROM litejobs_definition",
        )
        return [self.connection.execute(sql).fetchall() for sql in queries]

    def same(self, given: object, stored: object, where: str) -> None:
        self.run.expect(given == stored, f"{where}: {given!r} came back as {stored!r}")
        self.run.counts["stored"] += 1

    def one(self, job: Job[Any], given: str, field: str, **filters: Any) -> None:
        """Checks that a job is found by a filter, and has what was given."""
        found = self.jobs.find(**filters, limit=1000)
        self.run.expect(job.id in {one.id for one in found}, f"{filters!r} does not find its job")
        self.run.expect(
            all(getattr(one, field) == given for one in found), f"{filters!r} finds others, too"
        )
        self.same(given, getattr(self.jobs.get(job.id), field), field)
        repr(job)

    def sweep(self) -> None:
        """Lets all jobs run, takes them away, and looks at everything else."""
        with contextlib.suppress(LitejobsError):
            self.jobs.drain(queues=["said"])
        self.check_said()
        wrong = [finding for finding in self.jobs.doctor() if finding.level == "error"]
        self.run.expect(not wrong, f"the doctor finds {wrong}")
        for finding in self.jobs.doctor():
            shown = " ".join(attrs.astuple(finding))
            self.run.expect(not steers(shown, lines=False), f"a finding steers: {shown!r}")
        mine = [job.id for job in self.jobs.iterate() if job.queue != "bystanders"]
        if mine:
            self.jobs.cancel(*mine)
            self.run.expect(self.jobs.delete(*mine).moved == len(mine), "some jobs stay")
        for table in ("litejobs_queue", "litejobs_schedule", "litejobs_metric"):
            self.connection.execute(f"DELETE FROM {table}")
        self.connection.execute("DELETE FROM litejobs_definition")
        self.run.expect(self.rest() == self.untouched, "something else in the file has changed")

    def check_said(self) -> None:
        for job in self.jobs.iterate(queue="said", name="say"):
            text, how = job.payload["text"], job.payload["how"]
            kept = litejobs.storable(text)
            note = job.progress and job.progress.note
            self.same(litejobs.storable(text)[:500], note, "a note")
            if how == "return":
                self.same(text, job.result(), "a result")
            elif how != "cancel":
                self.same(kept[:2000], job.errors[0].message[:2000], "a message")
            if how == "fail":
                with contextlib.suppress(LitejobsError):
                    refused(self.run, "result", text, job.result)


# Places in the programming interface.


def _definition(world: World, text: str) -> None:
    made = litejobs.define(name=text)(hold)
    job = world.jobs.enqueue(made.bind("x"))
    world.one(job, text, "name", name=text)


def _queue(world: World, text: str) -> None:
    job = world.hold.using(queue=text).enqueue("x")
    world.one(job, text, "queue", queue=text)
    world.same(text, world.jobs.queue(text).set(concurrency=2, rate="5/s").name, "a queue")
    world.jobs.queue(text).pause()
    job.why()
    world.jobs.queue(text).reset()


def _node(world: World, text: str) -> None:
    world.one(world.hold.using(node=text).enqueue("x"), text, "node", node=text)


def _key(world: World, text: str) -> None:
    job = world.hold.using(key=text).enqueue("x")
    world.one(job, text, "key", key=text)
    world.hold.using(key=text).enqueue("y").why()


def _unique(world: World, text: str) -> None:
    unique = world.hold.using(unique=Unique(key=text))
    first, again = unique.enqueue("x"), unique.enqueue("y")
    world.run.expect(again.id == first.id and again.duplicate, f"unique {text!r} is not unique")
    world.fresh += 1
    other = world.hold.using(unique=Unique(key=f"{text}'{world.fresh}")).enqueue("x")
    world.run.expect(not other.duplicate, f"unique {text!r} takes another for itself")


def _headers(world: World, text: str) -> None:
    job = world.hold.using(headers={text: text, "plain": text}).enqueue("x")
    world.same({text: text, "plain": text}, world.jobs.get(job.id).headers, "headers")


def _payload(world: World, text: str) -> None:
    more = {text: [text, {text: 1}], "plain": None}
    job = world.hold.enqueue(text, more)
    world.same({"text": text, "more": more}, world.jobs.get(job.id).payload, "a payload")
    found = world.jobs.find(payload={"text": text}, limit=1000)
    world.run.expect(job.id in {one.id for one in found}, f"payload={text!r} finds nothing")
    others = [one.payload["text"] for one in found if one.payload["text"] != text]
    world.run.expect(not others, f"payload={text!r} finds {others[:3]!r}")


def _field(world: World, text: str) -> None:
    job = world.hold.enqueue("x", {text: 7})
    if "." not in text:
        found = world.jobs.find(payload={f"more.{text}": 7}, limit=1000)
        world.run.expect(job.id in {one.id for one in found}, f"the field {text!r} is not found")
        others = [one.payload for one in found if text not in (one.payload["more"] or {})]
        world.run.expect(not others, f"the field {text!r} finds {others[:3]!r}")


def _schedule(world: World, text: str) -> None:
    schedule = world.jobs.schedule(text)
    made = schedule.set("@every 1h", world.hold.bind(text))
    world.same(text, made.name, "a schedule")
    repr(made)
    job = schedule.fire()
    world.one(job, text, "schedule", schedule=text)
    world.same(text, job.payload["text"], "a payload of a schedule")
    schedule.pause()
    schedule.resume()
    world.jobs.store.schedules.fire(world.jobs.clock() + 7_200_000_000)
    schedule.remove()


def _expression(world: World, text: str) -> None:
    world.jobs.schedule("one").set(text, world.hold.bind("x"))


def _zone(world: World, text: str) -> None:
    world.jobs.schedule("one").set("@daily", world.hold.bind("x"), timezone=text)


def _rate(world: World, text: str) -> None:
    world.jobs.queue("slow").set(rate=text)


def _filter(world: World, text: str) -> None:
    """What nobody has been given: it matches nothing, so that nothing is moved."""
    text += "?"
    for name in ("name", "queue", "node", "key", "schedule"):
        filters: Any = {name: text}
        world.same(0, world.jobs.count(**filters), f"a count by {name}")
    filters = {world.dice.choice(("name", "queue", "node", "key", "schedule")): text}
    commands = ("cancel", "retry", "delete", "hold", "release")
    world.same(0, getattr(world.jobs, world.dice.choice(commands))(**filters).moved, "a command")
    world.jobs.metrics(queue=text, name=text, limit=2)


def _option(world: World, text: str) -> None:
    options: Any = {text: text}
    choice = world.dice.randrange(4)
    if choice == 0:
        world.jobs.find(**options)
    elif choice == 1:
        world.hold.using(**options)
    elif choice == 2:
        world.jobs.change(1, to=options)
    else:
        world.jobs.metrics(text)  # type: ignore[arg-type]


def _change(world: World, text: str) -> None:
    job = world.hold.enqueue("x")
    field: Any = {"payload": {"text": text}}
    world.same(1, world.jobs.change(job.id, to=field).moved, "a change")
    world.same(text, world.jobs.get(job.id).payload["text"], "a changed payload")
    world.jobs.change(job.id, to={"queue": text})
    world.one(job, text, "queue", queue=text)


def _said(world: World, text: str) -> None:
    world.say.enqueue(world.dice.choice(("return", "fail", "cancel", "raise", "retry")), text)


def _file(world: World, text: str) -> None:
    """A file in a folder that is so deep that "../" does not lead out of ours."""
    world.files += 1
    folder = world.run.folder / f"files{world.files}"
    deep = folder / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    try:
        if world.dice.random() < 0.3:
            world.jobs.backup(f"{deep}/{text}")
            return
        with LiteJobs(f"{deep}/{text}", durability="fast") as other:
            world.same(0, other.count(), "a new file's jobs")
            repr(other)
    finally:
        shutil.rmtree(folder)


def _wrong(world: World, text: str) -> None:
    """Where no text belongs."""
    choice = world.dice.randrange(6)
    wrong: Any = text
    if choice == 0:
        LiteJobs(world.run.folder / "x", durability=wrong)
    elif choice == 1:
        world.hold.using(priority=wrong)
    elif choice == 2:
        world.hold.enqueue(text, wrong)
    elif choice == 3:
        world.jobs.find(state=wrong)
    elif choice == 4:
        world.jobs.on(wrong)
    else:
        world.jobs.registry.named(text)


def _by_hand(world: World, text: str) -> None:
    """What another program writes: nobody has checked it."""
    connection, stored = world.connection, litejobs.storable(text)
    connection.execute(
        "INSERT INTO litejobs_job (name, queue, node, priority, state, payload, run_at,"
        " enqueued_at, error, key, schedule)"
        " VALUES (?1, ?1, ?1, 0, 'pending', ?2, 1, 1, ?1, ?1, ?1)",
        (stored, json.dumps({"text": text})),
    )
    id = connection.last_insert_rowid()
    world.one(world.jobs.get(id), stored, "name", name=text)
    shown = f"{world.jobs.get(id)!r} {world.jobs.why(id)!r}"
    world.run.expect(not steers(shown, lines=False), f"a job steers the terminal: {shown!r}")
    command(world, ["show", world.file, str(id)], text)
    command(world, ["why", world.file, str(id)], text)


# Places on the command line.


def command(world: World, arguments: list[str], text: str) -> tuple[int, str]:
    """A command, in this process; gives its exit code and what it printed."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            code = litejobs.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        out.seek(0)
        printed = out.read()
    for stream in (printed, err.getvalue()):
        wrong = steers(stream)
        world.run.expect(not wrong, f"{wrong} from {arguments!r}: {stream[:300]!r}")
    lines = err.getvalue().count("\n")
    world.run.expect(lines <= 1 or code == 0, f"{arguments!r} complains in {lines} lines")
    world.run.expect(code in (0, 1, 2, 3), f"{arguments!r} ended with {code}")
    world.run.counts["commands"] += 1
    return code, printed


def _list(world: World, text: str) -> None:
    option = world.dice.choice(("name", "queue", "node", "key", "schedule", "payload", "state"))
    command(world, ["list", world.file, f"--{option}={text}"], text)


def _listed(world: World, text: str) -> None:
    """A job with hostile texts among others, as a table and as JSON."""
    job = world.hold.using(headers={"x": text}).enqueue(text)
    stored = litejobs.storable(text)
    sql = "UPDATE litejobs_job SET error = ?, name = ? WHERE id = ?"
    world.connection.execute(sql, (stored, stored, job.id))
    for verb in (["list"], ["show"], ["stats"]):
        rest = [str(job.id)] if verb == ["show"] else []
        command(world, [*verb, world.file, *rest], text)
    code, printed = command(world, ["show", world.file, str(job.id), "--json"], text)
    world.same((0, text), (code, json.loads(printed)["payload"]["text"]), "a payload as JSON")
    world.connection.execute(sql, (None, "hold", job.id))


def _enqueue(world: World, text: str) -> None:
    choices = [
        f"--queue={text}",
        f"--node={text}",
        f"--key={text}",
        f"--delay={text}",
        f"--at={text}",
    ]
    arguments = [text, json.dumps({"text": text}), world.dice.choice(choices)]
    if world.dice.random() < 0.5:
        arguments = ["--", *arguments[:2]]
    code, printed = command(world, ["enqueue", world.file, *arguments], text)
    if code == 0 and printed.strip().isdigit():
        world.same(text, world.jobs.get(int(printed)).name, "a name from the command line")


def _any_command(world: World, text: str) -> None:
    verbs = ("list", "cancel", "retry", "delete", "show", "why", "queue", "fire", "new", "stats")
    verb, place = world.dice.choice(verbs), world.dice.choice((world.file, text))
    if verb in ("cancel", "retry", "delete"):
        rest = [f"--queue={text}?"]
    elif verb == "new":
        place, rest = text, [f"--dir={world.run.folder}/new", f"--queue={text}"]
    else:
        rest = [text] if world.dice.random() < 0.8 else [text, text]
    command(world, [verb, place, *rest], text)


def _process(world: World, text: str) -> None:
    """A real process, whose arguments the system takes: without NUL."""
    if world.dice.random() > 0.02:
        return _any_command(world, text)
    argument = text.replace("\0", "")
    try:
        arguments = [os.fsencode(one) for one in (world.file, f"--queue={argument}")]
    except UnicodeEncodeError:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "litejobs", "list", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
    )
    for stream in (done.stdout.decode(), done.stderr.decode()):
        world.run.expect(not steers(stream), f"a process printed {stream[:300]!r}")
    world.run.counts["processes"] += 1
    return None


PLACES: Mapping[Callable[[World, str], None], int] = {
    _definition: 8, _queue: 8, _node: 5, _key: 5, _unique: 5, _headers: 5, _payload: 10,
    _field: 6, _schedule: 6, _expression: 4, _zone: 2, _rate: 3, _filter: 6, _option: 6,
    _change: 5, _said: 12, _file: 1, _wrong: 8, _by_hand: 3, _list: 4, _listed: 1,
    _enqueue: 3, _any_command: 4, _process: 2,
}  # fmt: skip


def refused(run: Run, where: str, text: str, give: Callable[[], Any]) -> None:
    """Gives a text; an error of ours may refuse it, no other, and in words that harm nobody."""
    try:
        give()
    except LitejobsError as error:
        shown = [str(error), repr(error), *getattr(error, "__notes__", ())]
        wrong = [one for one in shown if steers(one, lines=False)]
        run.expect(not wrong, f"{where}: the error about {text!r} says {wrong[:1]!r}")
        run.expect("SQLError" not in str(error), f"{where}: {text!r} made SQL of its own: {error}")
        run.expect(len(str(error)) < LONG_LINE, f"{where}: {len(str(error))} characters of error")
        run.counts["refused"] += 1
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, AssertionError):
            raise
        run.violated(f"{where}: {text!r} raised {type(error).__name__}: {error}")


def names(run: Run) -> None:
    """Hostile strings come back as they were or are refused; they change and steer nothing else."""
    listener, log = Listener(), logging.getLogger("litejobs")
    with _heard(log, listener), _in(run.folder / "here" / "and" / "there"):
        (run.folder / "new").mkdir()
        world = World(run)
        places, weights = list(PLACES), list(PLACES.values())
        for number in range(1, run.count + 1):
            text = hostile(run.dice)
            (place,) = run.dice.choices(places, weights)
            name = place.__name__.strip("_")
            refused(run, name, text, lambda: place(world, text))  # noqa: B023
            run.counts["names"] += 1
            if number % BATCH == 0 or number == run.count:
                world.sweep()
            run.expect(not listener.found, f"{name}: the log has {listener.found[:1]}")
        outputs(world)
        world.jobs.close()


@contextlib.contextmanager
def _heard(log: logging.Logger, listener: Listener) -> Iterator[None]:
    before = log.level, log.propagate
    log.addHandler(listener)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(listener)
        log.level, log.propagate = before


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    """In a folder of our own, since relative names are among those that are tried."""
    before = Path.cwd()
    folder.mkdir(parents=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# What jobs print comes back from workers, which are processes.

PRINTING = """
import json, logging, sys
from litejobs import LiteJobs

jobs = LiteJobs("printed.db", durability="fast")

@jobs.define(max_attempts=1)
def shout(text: str) -> None:
    print(text.encode(errors="backslashreplace").decode())
    raise ValueError(text)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    jobs.enqueue_many(shout.bind(text) for text in json.load(sys.stdin))
    jobs.work(workers=1, until="empty")
"""


def outputs(world: World) -> None:
    """A node whose jobs print and raise hostile texts: its log, and what is shown of them."""
    run = world.run
    texts = [hostile(run.dice) for _ in range(min(100, run.count // 40))]
    program = run.folder / "printing.py"
    program.write_text(PRINTING, "utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        input=json.dumps(texts).encode(),
        cwd=run.folder,
        capture_output=True,
        timeout=120,
        check=False,
    )
    log = done.stderr.decode()
    run.expect(done.returncode == 0, f"the node ended with {done.returncode}: {log[-500:]}")
    run.expect(not steers(log), f"{steers(log)} in the log of a node: {log[-500:]!r}")
    file = str(run.folder / "printed.db")
    for id in range(1, len(texts) + 1):
        code, _ = command(world, ["show", file, str(id)], texts[id - 1])
        run.expect(code == 0, f"show ended with {code} for {texts[id - 1]!r}")
        run.counts["outputs"] += 1


ORDEALS = (Ordeal(run=names, quick=1_200, full=100_000, unit="names"),)
