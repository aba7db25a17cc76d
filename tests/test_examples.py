"""The examples, as a user runs them; the large one through `kill -9` at any moment, too."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from examples.index_library import Entry, index_file, python_files, totals
from litejobs import LiteJobs

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
    total = plain["files"] + 3
    assert f"\n{total}/{total} files, 0 to retry, 3 dead" in f"\n{errors}", "it shows its progress"
    assert "3 dead letters" in output
    assert output.count("SyntaxError: Missing parentheses") == 3


@pytest.mark.posix
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


@pytest.mark.posix
def test_stops_at_ctrl_c_and_goes_on(library: Path, plain: dict[str, int], tmp_path: Path) -> None:
    process = run(library, tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline(), "it shows how far it is, so it has begun"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "interrupted; run it again to go on" in errors or process.returncode == 0
    assert "Traceback" not in errors
    output, errors = run(library, tmp_path).communicate(timeout=60)
    assert printed_totals(output) == plain, errors


def shown(name: str, folder: Path, *options: str) -> list[str]:
    """The lines that an example prints; it leaves nothing behind but what it was asked to."""
    before = {path.name for path in folder.iterdir()}
    process = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert {path.name for path in folder.iterdir()} - before <= set(options)
    return process.stdout.splitlines()


@pytest.fixture(scope="module", params=["turned", "real"])
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, list[str]]:
    real = request.param == "real"
    options = ["--real"] if real else []
    return real, shown("small_office.py", tmp_path_factory.mktemp("office"), *options)


class TestTheSmallOffice:
    @staticmethod
    def moments(lines: list[str], *words: str) -> list[datetime]:
        """When the lines with these words were said."""
        return [
            datetime.strptime(line[:12], "%a %H:%M:%S")  # noqa: DTZ007
            for line in lines
            if all(f" {word}" in line for word in words)
        ]

    def test_sends_mails_at_a_rate(self, story: tuple[bool, list[str]]) -> None:
        real, lines = story
        sent = self.moments(lines, "mail", "completed:")
        interval = timedelta(seconds=1 if real else 60)
        # On a real clock seconds are cut off, and a start is seen a little later than it was.
        assert len(sent) == 4
        took = (sent[-1] - sent[0]) % timedelta(days=1)
        assert took >= 3 * interval - timedelta(seconds=real)

    def test_bills_each_customer_one_at_a_time(self, story: tuple[bool, list[str]]) -> None:
        _, lines = story
        printed = [line.split()[2:5] for line in lines if " bill " in line]
        customer = {
            line.split()[2]: re.findall("Ox|Yak", line)[0] for line in lines if " bill " in line
        }
        assert sorted(customer.values()) == ["Ox", "Ox", "Yak", "Yak"]
        for name in ("Ox", "Yak"):
            changes = [what for id, _, what in printed if customer[id] == name]
            assert changes == ["started:", "completed:"] * 2

    def test_imports_once_however_often_one_clicks(self, story: tuple[bool, list[str]]) -> None:
        _, lines = story
        assert "  somebody clicks again: still job 5, again.duplicate=True" in lines
        assert len(self.moments(lines, "import_bookings", "completed:")) == 1

    def test_replays_the_dead_letter_after_the_mistake_was_mended(
        self, story: tuple[bool, list[str]]
    ) -> None:
        _, lines = story
        printed = [line.split()[4] for line in lines if " read_prices " in line]
        assert printed == ["started:", "retrying:", "started:", "failed:", "started:", "completed:"]
        mended = lines.index("  the price list is there now, so once more: Moved(moved=1, left=0)")
        assert all(" failed:" not in line for line in lines[mended:])
        assert any("an hour costs 80 euros" in line for line in lines[mended:])

    def test_reports_at_three_in_the_night_of_its_zone(self, story: tuple[bool, list[str]]) -> None:
        real, lines = story
        reports = [line for line in lines if " report completed: all is quiet" in line]
        assert reports
        if not real:
            assert [line[:12] for line in reports] == ["Sat 03:00:00"]

    def test_keeps_its_file_if_it_is_told_to_and_overwrites_none(self, tmp_path: Path) -> None:
        *_, last = shown("small_office.py", tmp_path, "--db", "office.db")
        assert last == "All is in office.db: `litejobs list office.db` shows it."
        with LiteJobs(tmp_path / "office.db") as jobs:
            assert jobs.count(state="completed") == jobs.count() == 11
        with pytest.raises(AssertionError, match="is there already"):
            shown("small_office.py", tmp_path, "--db", "office.db")


def test_fetches_pages_many_at_a_time_and_gives_up_the_silent_one(tmp_path: Path) -> None:
    silent, others = shown("fetch_pages.py", tmp_path)
    assert silent.startswith("page 13, 5 of 10 (50%): lines: JobTimedOut: ")
    assert others == "59 others were fetched meanwhile"


def test_a_shop_confirms_what_it_has_sold_and_nothing_else(tmp_path: Path) -> None:
    assert shown("web_shop.py", tmp_path) == [
        "order 1 is confirmed: tea",
        "order 2 is confirmed: milk",
    ]


def test_watching_shows_each_run_what_went_wrong_and_the_sums(tmp_path: Path) -> None:
    *printed, sums = shown("watch.py", tmp_path)
    assert sums == "3 completed, 1 retried, 1 failed"
    assert sorted(printed) == [
        "job 4, attempt 1, retrying: ZeroDivisionError: division by zero",
        "job 4, attempt 2, failed: ZeroDivisionError: division by zero",
        *(f"{{'a': 6, 'b': {b}}} gave {6 / b}" for b in (1, 2, 3)),
    ]
