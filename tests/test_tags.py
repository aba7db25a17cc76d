"""Tags and meta: what is kept beside the payload, to find jobs by and to show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from chaos.older import older_file
from conftest import write_by_hand
from programs import eventually

from litejobs import (
    Constant,
    Context,
    LiteJobs,
    OptionError,
    Progress,
    define,
    main,
)

PATIENT = 60.0


@define
def work(n: int = 0) -> None: ...


@define(max_attempts=2, backoff=Constant(0))
def remember(context: Context, customer: int) -> dict[str, Any]:
    """Fails after it has written something, and finds it there in the second attempt."""
    if context.attempt == 1:
        context.meta("file", {"name": "a.csv", "rows": None})
        context.meta("customer", customer)
        raise ValueError("half-way")
    context.progress(1)
    return context.job.meta


@define(max_attempts=1)
def crash_with_meta(context: Context) -> None:
    context.meta("step", "crashing")
    os._exit(3)


@define(max_attempts=1)
def leave(context: Context, by: str) -> None:
    for item in context.track(range(10)):
        if item == 4:
            if by == "break":
                break
            raise ValueError(by)


@pytest.fixture
def tagged(jobs: LiteJobs) -> LiteJobs:
    """Four jobs, two of them with tags."""
    jobs.register(work)
    work.enqueue(1)
    work.using(tags=("import", "acme")).enqueue(2)
    work.using(tags="acme").enqueue(3)
    work.enqueue(4)
    return jobs


def ids(jobs: LiteJobs, **filters: Any) -> list[int]:
    return [job.id for job in jobs.find(**filters)]


def insert_by_another_program(jobs: LiteJobs, columns: str, *values: str) -> None:
    jobs.count()  # So that the file is there.
    with contextlib.closing(apsw.Connection(str(jobs.path))) as connection:
        connection.execute(
            f"INSERT INTO litejobs_job (name, {columns})"
            f" VALUES ('work', {', '.join('?' * len(values))})",
            values,
        )


class TestTags:
    def test_are_a_set_of_words_in_order(self, jobs: LiteJobs) -> None:
        jobs.register(work)
        job = work.using(tags=["b", "a", "b"]).enqueue()
        assert job.tags == jobs.get(job.id).tags == ("a", "b")
        assert work.enqueue().tags == ()

    def test_find_the_jobs_that_have_all_of_them(self, tagged: LiteJobs) -> None:
        assert ids(tagged, tags="acme") == [3, 2]
        assert ids(tagged, tags=("acme", "import")) == [2]
        assert ids(tagged, tags="acm") == []
        assert ids(tagged, tags="acme", id=[1, 2]) == [2]
        assert tagged.count(tags="acme", state="pending", name=work) == 2

    def test_go_with_states_that_leave_none(self, tagged: LiteJobs) -> None:
        assert ids(tagged, tags="acme", state="pending", not_state="pending") == []

    def test_choose_the_jobs_of_a_bulk_command(self, tagged: LiteJobs) -> None:
        assert tagged.cancel(tags="acme").moved == 2
        assert ids(tagged, state="pending") == [4, 1]

    def test_of_none_never_mean_every_job(self, tagged: LiteJobs) -> None:
        with pytest.raises(OptionError, match="tags: expected one tag or more"):
            tagged.delete(tags=())
        assert tagged.count() == 4

    def test_of_a_waiting_job_can_be_changed(self, tagged: LiteJobs) -> None:
        tagged.change(2, 3, to={"tags": "other", "meta": {"by": "hand"}})
        assert (ids(tagged, tags="other"), ids(tagged, tags="acme")) == ([3, 2], [])
        assert tagged.get(2).meta == {"by": "hand"}
        tagged.change(2, to={"tags": ()})
        assert ids(tagged, tags="other") == [3]

    def test_are_found_without_reading_the_other_jobs(self, tagged: LiteJobs) -> None:
        tagged.enqueue_many([work.bind(n) for n in range(20_000)])
        ticks = 0

        def count() -> bool:
            nonlocal ticks
            ticks += 1
            return False

        connection = tagged.store.file.connection()
        connection.set_progress_handler(count, 100)
        try:
            assert ids(tagged, tags="import") == [2]
            assert tagged.count(tags="acme") == 2
        finally:
            connection.set_progress_handler(None)
        assert ticks < 100

    def test_of_another_program_are_an_array_of_texts(self, jobs: LiteJobs) -> None:
        jobs.register(work)
        insert_by_another_program(jobs, "tags, meta", ' ["acme" , "import"] ', '{"by": "shell"}')
        for tags in ("acme", '"acme"', "{}", '["acme", 5]', "[[]]"):
            with pytest.raises(apsw.ConstraintError, match="litejobs: tags is not"):
                insert_by_another_program(jobs, "tags", tags)
        for meta in ("acme", "[]", "5"):
            with pytest.raises(apsw.ConstraintError, match="litejobs: meta is not"):
                insert_by_another_program(jobs, "meta", meta)
        [job] = jobs.find(tags="acme")
        assert (job.tags, job.meta) == (("acme", "import"), {"by": "shell"})

    def test_that_another_program_has_spoilt_are_named_and_hide_no_other_job(
        self, tagged: LiteJobs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_by_hand(tagged, "UPDATE litejobs_job SET tags = 'acme', meta = '[]' WHERE id = 2")
        assert ids(tagged, tags="acme") == [3]
        with pytest.raises(OptionError, match="tags: 'acme' in a row was not written by litejobs"):
            print(tagged.get(2).tags)
        with pytest.raises(OptionError, match="meta: "):
            print(tagged.get(2).meta)
        assert main(["list", str(tagged.path), "--json"]) == 0
        assert any("tags" in finding.subject for finding in tagged.doctor())

    def test_are_added_to_an_older_file(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.db"
        older_file(path, "INSERT INTO litejobs_job (name) VALUES ('work')")
        with LiteJobs(path) as jobs:
            jobs.register(work)
            work.using(tags="acme", meta={"a": 1}).enqueue()
            assert (ids(jobs), ids(jobs, tags="acme")) == ([2, 1], [2])

    def test_on_the_command_line(
        self, tagged: LiteJobs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def output(*words: str) -> str:
            verb, *rest = words
            main([verb, str(tagged.path), *rest])
            return capsys.readouterr().out

        output("enqueue", "work", "--tag", "b", "--tag", "acme", "--meta", 'customer="ada"')
        found = json.loads(output("list", "--json", "--tag", "acme", "--tag", "b"))
        assert [(job["tags"], job["meta"]) for job in found] == [
            (["acme", "b"], {"customer": "ada"})
        ]
        shown = output("show", "5")
        assert "acme" in shown
        assert "customer" in shown
        assert "tags" not in output("show", "1")
        output("change", "5", "--to-tag", "c")
        assert tagged.get(5).tags == ("c",)
        assert output("cancel", "--tag", "acme").startswith("2 cancelled")


class TestMeta:
    def test_is_given_and_read_as_json(self, jobs: LiteJobs) -> None:
        jobs.register(work)
        given: dict[str, Any] = {"customer": 7, "names": ("ada", "bob")}
        bound = work.using(meta=given).bind()
        given["customer"] = 8
        job = jobs.enqueue(bound)
        assert job.meta == jobs.get(job.id).meta == {"customer": 7, "names": ["ada", "bob"]}

    @pytest.mark.parametrize("workers", [0, 1])
    def test_that_a_job_writes_is_kept_for_further_attempts(
        self, jobs: LiteJobs, workers: int
    ) -> None:
        jobs.register(remember)
        job = remember.using(meta={"customer": 1, "from": "web"}).enqueue(7)
        if workers:
            jobs.work(threads=workers, until="empty")
        else:
            jobs.drain()
        job = job.refresh()
        expected = {"customer": 7, "from": "web", "file": {"name": "a.csv", "rows": None}}
        assert (job.state, job.meta, job.progress) == ("completed", expected, Progress(1))
        assert job.result() == expected

    def test_is_there_although_the_worker_crashed(self, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
            jobs.register(crash_with_meta)
            with jobs.start(workers=1):
                job = crash_with_meta.enqueue().wait(PATIENT)
        assert (job.state, job.meta) == ("failed", {"step": "crashing"})

    def test_is_seen_while_the_job_runs(self, jobs: LiteJobs) -> None:
        seen: list[dict[str, Any]] = []

        @jobs.define
        def look(context: Context) -> None:
            for n in range(100):
                context.meta("n", n)
            eventually(lambda: jobs.get(context.job.id).meta == {"n": 99}, within=5.0)
            seen.append(jobs.get(context.job.id).meta)

        look.enqueue()
        jobs.drain()
        assert seen == [{"n": 99}]

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            (object(), "expected JSON values: Object of type object is not JSON serializable"),
            (float("nan"), "expected JSON values: Out of range float values"),
            ("x" * 20_000, "characters of JSON, more than 16,384"),
        ],
    )
    def test_that_is_no_json_or_too_large_is_refused(
        self, jobs: LiteJobs, value: Any, problem: str
    ) -> None:
        said: list[str] = []

        @jobs.define
        def write(context: Context) -> None:
            with pytest.raises(OptionError, match=problem) as error:
                context.meta("value", value)
            said.append(str(error.value))

        write()
        assert said[0].startswith("meta: ")
        with pytest.raises(OptionError, match=problem):
            write.using(meta={"value": value})

    def test_is_not_too_large_in_many_small_pieces(self, jobs: LiteJobs) -> None:
        @jobs.define
        def write(context: Context) -> None:
            for n in range(100):
                context.meta(str(n), "x" * 500)

        with pytest.raises(OptionError, match="more than 16,384"):
            write()


class TestTrack:
    def test_reports_how_many_items_are_done(self, jobs: LiteJobs) -> None:
        seen: list[Any] = []

        @jobs.define
        def count(context: Context) -> None:
            for item in context.track(["a", "b"], note="letters"):
                seen.append((item, jobs.get(context.job.id).progress))

        job = count.enqueue()
        jobs.drain()
        assert seen[0] == ("a", Progress(0, 2, "letters"))
        assert job.refresh().progress == Progress(2, 2, "letters")

    def test_is_exact_soon_after_a_lot_of_items(self, jobs: LiteJobs) -> None:
        seen: list[Progress | None] = []

        @jobs.define
        def long_last_item(context: Context) -> None:
            for item in context.track(range(20_000)):
                if item in (10_000, 19_999):
                    exact = Progress(item, 20_000)
                    eventually(lambda: jobs.get(context.job.id).progress == exact, within=5.0)  # noqa: B023
                    seen.append(exact)

        job = long_last_item.enqueue()
        jobs.drain()
        assert (job.refresh().state, len(seen)) == ("completed", 2)

    @pytest.mark.parametrize("by", ["break", "an error"])
    def test_counts_no_item_that_was_not_finished(self, jobs: LiteJobs, by: str) -> None:
        jobs.register(leave)
        job = leave.enqueue(by)
        jobs.drain()
        assert job.refresh().progress == Progress(4, 10)

    def test_takes_what_has_no_length_and_a_total(self, jobs: LiteJobs) -> None:
        @jobs.define
        def generated(context: Context, total: int | None) -> None:
            assert sum(context.track((n for n in range(5)), total)) == 10

        unknown, known = generated.enqueue(None), generated.enqueue(10)
        jobs.drain()
        assert unknown.refresh().progress == Progress(5)
        assert known.refresh().progress == Progress(5, 10)

    def test_takes_an_async_iterable(self, jobs: LiteJobs) -> None:
        async def letters() -> AsyncIterator[str]:
            for letter in "abc":
                await asyncio.sleep(0)
                yield letter

        @jobs.define
        async def read(context: Context) -> str:
            return "".join([letter async for letter in context.track(letters(), 3)])

        job = read.enqueue()
        jobs.drain()
        assert (job.result(0), job.refresh().progress) == ("abc", Progress(3, 3))

    def test_is_a_plain_iteration_where_there_is_no_job(self, jobs: LiteJobs) -> None:
        @jobs.define
        def letters(context: Context) -> list[str]:
            return [*context.track("abc")]

        assert letters() == ["a", "b", "c"]

    def test_refuses_a_wrong_total_at_once(self, jobs: LiteJobs) -> None:
        @jobs.define
        def wrong(context: Context) -> None:
            total: Any = "many"
            with pytest.raises(OptionError, match="expected a finite number, got 'many'"):
                context.track([], total)

        wrong()
