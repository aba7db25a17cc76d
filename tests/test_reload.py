"""Code that is loaded again: a notebook's cell that is run again, a module that is reloaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from litejobs import DefinitionError, LiteJobs, OptionError, PayloadError

PATIENT = 60.0

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(jobs: LiteJobs) -> Run:
    """Runs a cell as notebooks do: all cells share their names, and each run is compiled anew."""
    names: dict[str, Any] = {"__name__": "notebook", "jobs": jobs}

    def run(cell: str) -> dict[str, Any]:
        exec(compile(cell, "<cell>", "exec"), names)
        return names

    return run


@pytest.fixture
def module(jobs: LiteJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes a module, and imports or reloads it; it finds the queue in `sys`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Its time stamps are whole seconds.
    monkeypatch.setattr(sys, "the_queue", jobs, raising=False)

    def load(text: str) -> ModuleType:
        header = "import sys, attrs, litejobs\njobs = sys.the_queue\n"
        (tmp_path / "reloaded.py").write_text(header + text)
        importlib.invalidate_caches()
        known = sys.modules.get("reloaded")
        return importlib.reload(known) if known else importlib.import_module("reloaded")

    yield load
    sys.modules.pop("reloaded", None)


class TestACell:
    SEND = "@jobs.define\ndef send(to: str) -> str:\n    return '{} ' + to\n"

    def test_replaces_its_definition_when_it_is_run_again(self, jobs: LiteJobs, run: Run) -> None:
        first = run(self.SEND.replace("{}", "to"))["send"]
        run(self.SEND.replace("{}", "to"))
        new = run(self.SEND.replace("{}", "dear"))["send"]
        assert [*jobs.registry] == [new]
        held, fresh = first.enqueue("Ada"), new.enqueue("Bob")
        assert jobs.drain() == 2
        assert [held.result(0), fresh.result(0)] == ["dear Ada", "dear Bob"]

    def test_may_be_run_again_after_a_threaded_node_has_stopped(
        self, jobs: LiteJobs, run: Run
    ) -> None:
        for greeting in ("to", "dear"):
            send = run(self.SEND.replace("{}", greeting))["send"]
            with jobs.start(threads=1):
                assert send.enqueue("Ada").result(PATIENT) == f"{greeting} Ada"
                with pytest.raises(DefinitionError, match="stop the node first"):
                    run(self.SEND)

    def test_may_be_run_again_after_a_node_that_could_not_start(
        self, jobs: LiteJobs, run: Run
    ) -> None:
        run(self.SEND)
        with pytest.raises(OptionError):
            jobs.start(threads=0)
        run(self.SEND)

    def test_gives_its_schedule_anew(self, jobs: LiteJobs, run: Run) -> None:
        cell = "@jobs.cron('0 {} * * *')\n@jobs.define(queue='{}')\ndef nightly() -> None: ...\n"
        for hour in (3, 4):
            run(cell.replace("{}", str(hour)))
        jobs.drain()
        [schedule] = jobs.schedules()
        assert (schedule.expression, schedule.job_options["queue"]) == ("0 4 * * *", "4")

    def test_is_called_once_with_each_event_however_often_it_was_run(
        self, jobs: LiteJobs, run: Run
    ) -> None:
        received = run("received, events = [], []")["received"]
        run(self.SEND)
        for _ in range(3):
            run("jobs.on('completed')(events.append)")
            run("@jobs.on()\n@jobs.on('failed')\ndef tell(event): received.append(event.kind)")
        run("jobs.on('completed')(lambda event: received.append('first'))")
        run("jobs.on('completed')(lambda event: received.append('second'))")
        run("send.enqueue('Ada')")
        jobs.drain()
        assert received == ["enqueued", "started", "completed", "first", "second"]
        assert len(run("")["events"]) == 1

    def test_that_no_longer_gives_a_schedule_takes_it_away(self, jobs: LiteJobs, run: Run) -> None:
        run("@jobs.cron('@daily')\n@jobs.define\ndef nightly() -> None: ...\n")
        jobs.drain()
        run("@jobs.define\ndef nightly(n: int) -> None: ...\n")
        jobs.drain()
        assert jobs.schedules() == []

    def test_changes_what_a_schedule_of_another_cell_enqueues(
        self, jobs: LiteJobs, run: Run
    ) -> None:
        for kind in ("@jobs.define(queue={!r})\ndef work() -> None: ...", CLASS):
            for queue in ("a", "b"):
                run(kind.replace("{!r}", repr(queue)))
                if queue == "a":
                    run("jobs.cron('@daily', work, name=str(work))")
        jobs.drain()
        assert [schedule.job_options["queue"] for schedule in jobs.schedules()] == ["b", "b"]

    def test_lets_instances_of_the_old_class_be_enqueued(self, jobs: LiteJobs, run: Run) -> None:
        old = run(CLASS.replace("{!r}", "'a'"))["work"](3)
        new = run(CLASS.replace("{!r}", "'b'"))["work"](4)
        assert [jobs.enqueue(each).queue for each in (old, new)] == ["a", "b"]
        assert jobs.drain() == 2

    def test_with_another_function_of_that_name_is_refused(self, jobs: LiteJobs, run: Run) -> None:
        run(self.SEND)
        with pytest.raises(DefinitionError, match="defined twice, at <cell>:1 and at"):
            run("@jobs.define(name='send')\ndef post(to: str) -> None: ...\n")
        jobs.define(name="elsewhere")(lambda: None)
        with pytest.raises(DefinitionError, match="'elsewhere': defined twice"):
            run("jobs.define(name='elsewhere')(lambda: None)\n")


CLASS = """
import attrs
@jobs.define(name="class", queue={!r})
@attrs.frozen
class work:
    n: int = 0
    def run(self) -> None: ...
"""


class TestAModule:
    def test_that_is_reloaded_replaces_its_definitions_and_schedules(
        self, jobs: LiteJobs, module: Any
    ) -> None:
        text = "\n@jobs.every({})\n@jobs.define\ndef work(n: int = 0) -> int:\n    return n + {}\n"
        held = module(text.replace("{}", "1")).work
        new = module("\n\n" + text.replace("{}", "2")).work
        assert [*jobs.registry] == [new]
        job = held.enqueue(5)
        assert (jobs.drain(), job.result(0)) == (1, 7)
        assert [schedule.expression for schedule in jobs.schedules()] == ["@every 2s"]

    def test_of_a_library_is_registered_again(self, jobs: LiteJobs, module: Any) -> None:
        for queue in ("a", "b"):
            library = module(f"@litejobs.define(queue={queue!r})\ndef work() -> None: ...\n")
            jobs.register(library.work)
            assert library.work.enqueue().queue == queue

    def test_that_has_one_name_twice_is_refused_whenever_it_is_loaded(
        self, jobs: LiteJobs, module: Any
    ) -> None:
        text = "@jobs.define\ndef send() -> None: ...\n"
        module(text)
        with pytest.raises(DefinitionError, match=r"defined twice, at .*:3 and at .*:5: give one"):
            module(text + text)
        text = "work = jobs.define(name='{}')(lambda: None)\njobs.cron('@daily', work, name='{}')\n"
        module(text.replace("{}", "a"))
        with pytest.raises(OptionError, match="'b' declared twice, in reloaded and in reloaded"):
            module(text.replace("{}", "b") + "jobs.cron('@hourly', work, name='b')\n")

    def test_whose_function_a_loop_defines_twice_is_refused(
        self, jobs: LiteJobs, module: Any
    ) -> None:
        loop = "for n in range(2):\n    @jobs.define\n    def send() -> int: return n\n"
        with pytest.raises(DefinitionError, match="defined twice"):
            module(loop)


def test_an_old_handle_checks_what_it_is_given_by_its_own_parameters(
    jobs: LiteJobs, run: Run
) -> None:
    old = run("@jobs.define\ndef send(to: str) -> None: ...")["send"]
    run("@jobs.define\ndef send(to: int) -> None: ...")
    with pytest.raises(PayloadError, match="expected str"):
        old.enqueue(3)
