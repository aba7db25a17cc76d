"""Cuts the power: of what was written to a disk and not synced, any part may be there afterwards.

Everything that a producer and a node write is recorded. Then images are built of what a power cut
could have left: all that was synced, and of what was written, truncated, created and removed since
then whatever the dice say, torn by the sector, in any order. The index of the WAL, which is shared
memory, is gone. What an image says has to be, word by word, what the file said after some deed:
with durability "full", none is missing that was acknowledged to a producer.
"""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import attrs

import litejobs

from .child import CAN_FORK, within_timeout
from .deeds import DEEDS, Hands, changes_between, portrait, works_on
from .disk import Disk, Touch, remove_all
from .ordeal import Ordeal, Run

SECTOR = 512
DEEDS_IN_ALL, IMAGES_OF_EACH, IMAGES_OF_A_CUT = 150, 500, 5
WORKED_ON = 10
"""One of how many images is also opened by litejobs, and its jobs run."""

OF_THE_NODE = frozenset(
    ("join", "claim", "settle", "settle and claim", "fail", "try again later", "progress",
     "leave", "rescue", "tick", "stage", "expire", "prune", "shrink", "count")
)  # fmt: skip
"""Whose last deeds may be lost: then they are done again."""
LIKELY = {"enqueue": 8, "enqueue many": 3, "settle and claim": 8, "claim": 4, "checkpoint": 2}
LEFT_OUT = frozenset(("back up", "checkpoint often"))


class Change(NamedTuple):
    """Something that happened to a file, or a deed's begin or end."""

    kind: str
    """A Touch's, or "began" or "done"."""
    file: int = 0
    """Its inode, so to say; or which deed."""
    place: int = 0
    data: bytes = b""
    name: str = ""
    with_names: bool = False


@attrs.define(eq=False)
class Recording:
    """All that was done to the disk, in order, with what the file said after each deed."""

    durability: litejobs.Durability
    changes: list[Change] = attrs.field(factory=list)
    states: list[str] = attrs.field(factory=lambda: [""])
    kept: list[int] = attrs.field(factory=lambda: [0])
    """For each deed, the last one so far that was acknowledged to a producer, and that changed
    something: it is never lost again."""
    deeds: list[str] = attrs.field(factory=lambda: ["nothing"])
    _files: dict[str, int] = attrs.field(factory=dict)
    _last: int = 0

    def watch(self, touch: Touch) -> None:
        """Writes down what is about to happen."""
        name = touch.path.name
        if "-node-" in name:
            return
        if touch.kind == "open":
            if name not in self._files:
                self._last += 1
                self._files[name] = self._last
                self.changes.append(Change("open", self._last, name=name))
            return
        file = self._files.pop(name, 0) if touch.kind == "remove" else self._files[name]
        self.changes.append(
            Change(touch.kind, file, touch.place, touch.data, name, touch.with_names)
        )

    def perform(self, hands: Hands, deed: str) -> None:
        """Does a deed, and looks at the file."""
        number = len(self.states)
        self.deeds.append(deed)
        self.changes.append(Change("began", number))
        hands.do(deed)
        self.changes.append(Change("done", number))
        self.states.append(portrait(hands.path))
        changed = self.states[-1] != self.states[-2]
        sure = changed and self.durability == "full" and deed not in OF_THE_NODE
        self.kept.append(number if sure else self.kept[-1])


def record(
    disk: Disk, path: Path, durability: litejobs.Durability, dice: random.Random
) -> Recording:
    """A producer and a node at work, from nothing on."""
    recording, hands = Recording(durability), Hands(path, durability, dice)
    names = [name for name in DEEDS if name not in LEFT_OUT]
    weights = [LIKELY.get(name, 1) for name in names]
    disk.watcher = recording.watch
    with contextlib.closing(hands):
        recording.perform(hands, "open")
        often = dice.random() < 0.5
        for deed in dice.choices(names, weights, k=DEEDS_IN_ALL):
            if often:
                hands.checkpoint_often()
            recording.perform(hands, deed)
    return recording


@attrs.define(eq=False)
class Platter:
    """What is on the disk for certain, and what may be."""

    synced: defaultdict[int, bytes] = attrs.field(factory=lambda: defaultdict(bytes))
    """By file."""
    loose: defaultdict[int, list[Change]] = attrs.field(factory=lambda: defaultdict(list))
    """What has happened to a file since it was synced."""
    names: dict[str, int] = attrs.field(factory=dict)
    loose_names: defaultdict[str, list[int]] = attrs.field(factory=lambda: defaultdict(list))
    """Which file a name was given to since the folder was synced; 0: none."""

    def take(self, change: Change) -> None:
        """One more thing has happened."""
        match change.kind:
            case "write" | "truncate":
                self.loose[change.file].append(change)
            case "open":
                self.loose_names[change.name].append(change.file)
            case "remove":
                self.loose_names[change.name].append(0)
            case "sync":
                content = self.synced[change.file]
                self.synced[change.file] = built(content, self.loose.pop(change.file, []), whole)
        if change.with_names:
            self.names |= {name: files[-1] for name, files in self.loose_names.items()}
            self.loose_names.clear()

    def image(self, dice: random.Random) -> dict[str, bytes]:
        """Files as a power cut may leave them, by name."""
        found = {}
        for name in sorted(self.names.keys() | self.loose_names.keys()):
            file = dice.choice([self.names.get(name, 0), *self.loose_names.get(name, [])])
            if file:
                fate = dice.choice(FATES)(dice, len(self.loose[file]))
                found[name] = built(self.synced[file], self.loose[file], fate)
        return found


Fate = Callable[[int, int], bool]
"""Whether the n-th change since the last sync is there, at this sector."""


def whole(number: int, sector: int) -> bool:
    return True


def none(dice: random.Random, changes: int) -> Fate:
    return lambda number, sector: False


def every(dice: random.Random, changes: int) -> Fate:
    return whole


def first(dice: random.Random, changes: int) -> Fate:
    end = dice.randint(0, changes)
    return lambda number, sector: number < end


def first_and_half(dice: random.Random, changes: int) -> Fate:
    end, share = dice.randint(0, changes), dice.random()
    return lambda number, sector: number < end or (number == end and dice.random() < share)


def some(dice: random.Random, changes: int) -> Fate:
    share = dice.random()
    there = [dice.random() < share for _ in range(changes)]
    return lambda number, sector: there[number]


def all_but_one(dice: random.Random, changes: int) -> Fate:
    missing = dice.randrange(changes + 1)
    return lambda number, sector: number != missing


def torn(dice: random.Random, changes: int) -> Fate:
    share = dice.choice((0.1, 0.5, 0.9, 0.99))
    return lambda number, sector: dice.random() < share


FATES = (none, every, first, first_and_half, some, all_but_one, torn)


def built(content: bytes, changes: list[Change], there: Fate) -> bytes:
    """A file's content, after as many of the changes as are there. Where a file has grown
    without what was written there, there are zeros."""
    file = bytearray(content)
    for number, change in enumerate(changes):
        if change.kind == "truncate":
            if there(number, 0):
                del file[change.place :]
            continue
        for start, end in sectors(change.place, len(change.data)):
            if there(number, start // SECTOR):
                file.extend(bytes(max(0, start - len(file))))
                file[start:end] = change.data[start - change.place : end - change.place]
    return bytes(file)


def sectors(place: int, length: int) -> Iterator[tuple[int, int]]:
    """From where to where a write goes in each sector."""
    start, last = place, place + length
    while start < last:
        end = min(last, start - start % SECTOR + SECTOR)
        yield start, end
        start = end


def power_cut(run: Run) -> None:
    """A power cut loses nothing acknowledged; with "fast", by choice, the last of it at most."""
    if not CAN_FORK:
        run.counts["skipped, since there is no SIGALRM here"] += 1
        return
    path, image = run.folder / "jobs" / "jobs.db", run.folder / "image" / "jobs.db"
    with Disk() as disk:
        for durability in ("full", "fast"):
            left = run.count
            while left > 0:
                for at in (path, image):
                    at.parent.mkdir(exist_ok=True)
                    remove_all(at.parent)
                with within_timeout("while it was recorded"):
                    recording = record(disk, path, durability, run.dice)
                disk.watcher = lambda touch: None
                run.counts["writes and syncs recorded"] += len(recording.changes)
                cut(run, recording, image, min(left, IMAGES_OF_EACH))
                left -= IMAGES_OF_EACH


def cut(run: Run, recording: Recording, path: Path, images: int) -> None:
    """Goes through a recording once, and stops at random to build images."""
    cuts = sorted(run.dice.choices(range(len(recording.changes) + 1), k=images // IMAGES_OF_A_CUT))
    platter, began, done, taken = Platter(), 0, 0, 0
    for at in cuts:
        for change in recording.changes[taken:at]:
            platter.take(change)
            began = change.file if change.kind == "began" else began
            done = change.file if change.kind == "done" else done
        taken = at
        for _ in range(IMAGES_OF_A_CUT):
            what = f"durability {recording.durability}, cut in or after {recording.deeds[began]!r}"
            files = platter.image(run.dice)
            with within_timeout(what):
                number = examine(
                    run, recording, path, files, range(recording.kept[done], began + 1), what
                )
                run.counts["images that lost a tail"] += number < done


def examine(
    run: Run, recording: Recording, path: Path, files: dict[str, bytes], allowed: range, what: str
) -> int:
    """Looks at an image, which has to be in the state after one of the deeds *allowed*; says
    after which one."""
    write_image(path.parent, files)
    state = portrait(path)
    number = next((n for n in reversed(allowed) if recording.states[n] == state), None)
    if number is None:
        run.violated(f"{what}: {describe(recording, allowed, state)}")
    run.counts[f"images, {recording.durability}"] += 1
    if run.dice.randrange(WORKED_ON) == 0:
        write_image(path.parent, files)
        works_on(run, path, what)
        run.counts["images worked on"] += 1
    return number


def describe(recording: Recording, allowed: range, state: str) -> str:
    """What is wrong with a state that is not allowed."""
    if numbers := [n for n, known in enumerate(recording.states) if known == state]:
        return f"the file is as after deed {numbers}, and not as after {allowed[0]}–{allowed[-1]}"
    near = max(recording.states, key=lambda known: len({*known.split("\n")} & {*state.split("\n")}))
    deed = recording.deeds[recording.states.index(near)]
    return f"the file is as never before; after {deed!r} it said\n{changes_between(near, state)}"


def write_image(folder: Path, files: dict[str, bytes]) -> None:
    """Makes a folder what it is after the power has come back."""
    remove_all(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)


ORDEALS = (Ordeal(run=power_cut, quick=250, full=20_000, unit="images of each durability"),)
