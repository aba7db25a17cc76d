"""The functions by which SQLite asks the system, and how to put others in their place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import apsw

_INT, _LONG, _POINTER, _TEXT = ctypes.c_int, ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_char_p
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "open": (_INT, _TEXT, _INT, _INT),
    "close": (_INT, _INT),
    "access": (_INT, _TEXT, _INT),
    "stat": (_INT, _TEXT, _POINTER),
    "lstat": (_INT, _TEXT, _POINTER),
    "fstat": (_INT, _INT, _POINTER),
    "ftruncate": (_INT, _INT, _LONG),
    "fcntl": (_INT, _INT, _INT, _POINTER),
    "read": (_LONG, _INT, _POINTER, _LONG),
    "pread64": (_LONG, _INT, _POINTER, _LONG, _LONG),
    "write": (_LONG, _INT, _POINTER, _LONG),
    "pwrite64": (_LONG, _INT, _POINTER, _LONG, _LONG),
    "fchmod": (_INT, _INT, _INT),
    "fchown": (_INT, _INT, _INT, _INT),
    "unlink": (_INT, _TEXT),
    "readlink": (_LONG, _TEXT, _POINTER, _LONG),
    "mmap": (_LONG, _POINTER, _LONG, _INT, _INT, _INT, _LONG),
    "munmap": (_INT, _POINTER, _LONG),
}
"""What SQLite calls: the type of what comes back, and those of the arguments."""
SYSTEM = "unix"
Call = Callable[..., int]


def replace(name: str, by: Callable[[str, Call], Call]) -> object:
    """Replaces what SQLite calls by what *by* makes of it, for the rest of this process; gives
    what has to be kept alive for so long. The errno that SQLite sees is the one of ctypes."""
    vfs = apsw.VFS(f"with another {name}", SYSTEM)
    result, *arguments = PROTOTYPES[name]
    kind = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
    address = vfs.xGetSystemCall(name)
    assert address, name
    ours = kind(by(name, kind(address)))
    place = ctypes.cast(ours, ctypes.c_void_p).value
    assert place is not None
    vfs.xSetSystemCall(name, place)
    return vfs, ours
