"""The example, as a user runs it: to the end, and through `kill -9` at any moment."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from examples.index_library import Entry, index_file, python_files, totals

ROOT = Path(__file__).parents[1]
LIBRARY = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the standard library, and some files that do not parse."""
    folder = tmp_path_factory.mktemp("library")
    for package in ("asyncio", "email", "json", "xml", "logging", "unittest", "importlib"):
        shutil.copytree(LIBRARY / package, folder / package)
    for n in range(3):
        (folder / f"broken_{n}.py").write_text("print 'an older Python'\n")
    return folder


@pytest.fixture(scope="module")
def plain(library: Path) -> dict[str, int]:
    """What one loop in one process comes to."""
    entries: list[Entry] = []
    for path in python_files(library):
        if not path.name.startswith("broken"):
            entries.append(index_file(path))
    return totals(entries)


def run(library: Path, folder: Path) -> subprocess.Popen[str]:
    """Starts the example in a process group of its own."""
    script = ROOT / "examples" / "index_library.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(library), "--db", "index.db", "--workers", "2"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def printed_totals(output: str) -> dict[str, int]:
    found = re.findall(r"^  (\w+) +([\d,]+)$", output, re.M)
    return {name: int(value.replace(",", "")) for name, value in found}


def test_indexes_a_library_like_a_plain_loop(
    library: Path, plain: dict[str, int], tmp_path: Path
) -> None:
    output, errors = run(library, tmp_path).communicate(timeout=60)
    assert printed_totals(output) == plain, errors
    assert "3 dead letters" in output
    assert output.count("SyntaxError: Missing parentheses") == 3


def test_goes_on_where_it_was_after_kill_9_of_everything(
    library: Path, plain: dict[str, int], tmp_path: Path
) -> None:
    rng = random.Random(1)
    for _ in range(4):
        process = run(library, tmp_path)
        time.sleep(rng.uniform(0.2, 1.2))  # the moment does not matter: that is the point
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    output, errors = run(library, tmp_path).communicate(timeout=60)
    assert printed_totals(output) == plain, errors
    assert "3 dead letters" in output
    assert not list(tmp_path.glob("*-node-*")), "every node that died was taken off the list"


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_stops_at_ctrl_c_and_goes_on(library: Path, plain: dict[str, int], tmp_path: Path) -> None:
    process = run(library, tmp_path)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "interrupted; run it again to go on" in errors or process.returncode == 0
    assert "Traceback" not in errors
    output, errors = run(library, tmp_path).communicate(timeout=60)
    assert printed_totals(output) == plain, errors
