"""A file as an older litejobs left it, whose schema has the number 3."""

from __future__ import annotations

import contextlib
from pathlib import Path

import apsw

SCHEMA_3 = Path(__file__).with_name("schema3.sql").read_text()


def older_file(path: Path, *more: str) -> None:
    """Makes the file, and executes *more* statements in it."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.pragma("journal_mode", "wal")
        for sql in (SCHEMA_3, *more):
            connection.execute(sql)
