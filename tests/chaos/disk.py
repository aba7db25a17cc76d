"""A disk between SQLite and the real one, of which a watcher sees each write, truncation, sync
and removal, before it happens. Nothing is really synced, since no power is really cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import apsw
import attrs

Kind = Literal["open", "write", "truncate", "sync", "remove"]


@attrs.frozen
class Touch:
    """Something that is about to happen to a file."""

    kind: Kind
    path: Path
    file: DiskFile | None = None
    """`None` when a name is removed."""
    place: int = 0
    """Where is written, or to what size is truncated."""
    data: bytes = b""
    with_names: bool = False
    """Whether the names in its folder are synced as well."""


Watcher = Callable[[Touch], None]


def nobody(touch: Touch) -> None:
    """Watches nothing."""


class Disk(apsw.VFS):
    """The default disk of this process, as long as a `with` statement lasts."""

    def __init__(self) -> None:
        self.watcher: Watcher = nobody
        self.below = apsw.vfs_names()[0]
        super().__init__("watched-disk", self.below, makedefault=True)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *error: object) -> None:
        apsw.set_default_vfs(self.below)
        self.unregister()

    def xOpen(self, name: Any, flags: list[int]) -> DiskFile:
        return DiskFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.watcher(Touch("remove", Path(filename), with_names=syncdir))
        super().xDelete(filename, syncdir)


class DiskFile(apsw.VFSFile):
    """An open file on a watched disk."""

    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self.disk = disk
        self.path = Path(name if isinstance(name, str) else name.filename() if name else "")
        if self.path.name:
            disk.watcher(Touch("open", self.path, self))
        super().__init__(disk.below, name, flags)
        # SQLite syncs the folder of a log or a journal along with it, the first time.
        logs = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
        self.with_names = bool(flags[0] & logs)

    def xWrite(self, data: bytes, offset: int) -> None:
        self.disk.watcher(Touch("write", self.path, self, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self.disk.watcher(Touch("truncate", self.path, self, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self.disk.watcher(Touch("sync", self.path, self, with_names=self.with_names))
        self.with_names = False

    def write_half(self, touch: Touch) -> None:
        """What is left of a write when the process dies in it."""
        super().xWrite(touch.data[: len(touch.data) // 2], touch.place)


def remove_all(folder: Path) -> None:
    """Empties a folder in which nothing is open."""
    for entry in os.scandir(folder):
        os.unlink(entry.path)
