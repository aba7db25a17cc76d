"""The examples, as a user runs them; the large one through `kill -9` at any moment, too."""

import copy
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from programs import printed

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
    output = printed(ROOT / "examples" / name, folder, *options)
    assert {path.name for path in folder.iterdir()} - before <= set(options)
    return output.splitlines()


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


PRINTED = {
    "hello": ["hello world"],
    "retries": [
        "ConnectionError: the server is busy; again in 10 s",
        "ConnectionError: the server is busy; again in 20 s",
        "page 1, at the attempt 3",
        "failed | Fail: there is no cake",
        "Moved(moved=1, left=0)",
        "the cake is 4",
    ],
    "schedules": [
        "check: Every 2 hours",
        "nightly: At 02:30 every day (Europe/Berlin)",
        "weekdays: At 07:00 on Monday through Friday (UTC)",
        "02:30 came twice; the backup ran at 02:30",
        "5 checks in ten hours",
        "1 job at once: mail",
    ],
    "unique": [
        "click 1: job 1 ",
        "click 2: job 1 (is there already)",
        "click 3: job 1 (is there already)",
        "import_bookings ran once: savings, click 1",
        "save ran once: Dear all",
        "index ran once: pages [1, 2, 3] at once",
    ],
    "progress": [
        "film 1 has 50 frames",
        "film 2 has 50 frames",
        "job 3 (convert) is cancelled and has no result: Cancelled: cancelled while it ran",
    ],
    "flask_app": ["202", "{'result': 'cat.png is 800 pixels wide', 'state': 'completed'}"],
    "fastapi_app": ["202", "{'state': 'completed', 'result': 'cat.png is 800 pixels wide'}"],
    "django_site": [
        "tea 200",
        "cake 404",
        "milk 200",
        "order 1 is confirmed",
        "order 2 is confirmed",
        "order 1 is packed",
        "order 2 is packed",
    ],
}
"""What the shorter examples print. They leave their queue where they run."""


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_is_about(name: str, tmp_path: Path) -> None:
    framework = {"flask_app": ["flask"], "fastapi_app": ["fastapi", "httpx"]}
    needs = framework.get(name, ["django"] if name == "django_site" else [])
    if not has(*needs):
        pytest.skip('python -m pip install ".[examples]"')
    output = printed(ROOT / "examples" / f"{name}.py", tmp_path)
    assert output.splitlines() == PRINTED[name]


@pytest.mark.skipif(not has("nbclient", "ipykernel"), reason='pip install ".[examples]"')
def test_a_notebook_runs_its_cells_more_than_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    *cells, stop = notebook.cells
    again = [copy.deepcopy(cell) | {"id": f"again-{n}"} for n, cell in enumerate([*cells, stop])]
    notebook.cells = [*cells, stop, *map(nbformat.NotebookNode, again)]
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    assert shown[0] == shown[3] == "[6, 12, 18]"
    assert shown[-1] == "{'default': {'completed': 6}}"


# Presses the window's buttons, and looks at what it shows.
PRESSING = """
import sys, time, tkinter
from examples import desktop_window
from examples.desktop_window import jobs

root = tkinter.Tk()
window = desktop_window.Window(root)

def until(true):
    end = time.monotonic() + 30
    while not true():
        root.update()
        time.sleep(0.01)
        assert time.monotonic() < end

def shown(words):
    return sum(words in text.get() for _, text, _ in window.rows.values())

if sys.argv[1] == "first":
    for _ in range(3):
        window.add()
    until(lambda: shown("running") == 2 and all(job.meta for job in jobs.find(state="running")))
    job, *_ = jobs.find(state="running")
    window.rows[job.id][2].invoke()
    until(lambda: shown("cancelled") == 1 and shown("running") == 2)
    until(lambda: all(job.meta for job in jobs.find(state="running")))
    window.close()
    print([(job.state, job.attempt) for job in jobs.find()])
    print(min(job.meta["done"] for job in jobs.find(state="pending")) > 0)
else:
    until(lambda: shown("completed") == 2)
    print([(job.state, job.attempt) for job in jobs.find(state="completed")])
    window.close()
"""


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A screen in memory."""
    if not (has("tkinter") and shutil.which("Xvfb")):
        pytest.skip("needs tkinter, and Xvfb (apt-get install xvfb)")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x400x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with open(read) as number:
        monkeypatch.setenv("DISPLAY", f":{number.readline().strip()}")
    yield
    server.terminate()
    server.wait()


@pytest.mark.linux
def test_a_window_is_closed_while_jobs_run_and_they_go_on_when_it_opens_again(
    screen: None, tmp_path: Path
) -> None:
    (tmp_path / "pressing.py").write_text(PRESSING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = [
        subprocess.run(
            [sys.executable, "pressing.py", part],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for part in ("first", "second")
    ]
    assert [each.stderr for each in printed] == ["", ""]
    first, second = (each.stdout.splitlines() for each in printed)
    assert sorted(eval(first[0])) == [("cancelled", 1), ("pending", 0), ("pending", 0)]
    assert first[1] == "True"
    assert second == ["[('completed', 1), ('completed', 1)]"]
