"""Definitions that write their payloads as bytes of their own, and read them back."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from conftest import TurnedClock, write_by_hand
from programs import Programs

import litejobs
from litejobs import (
    PAYLOAD_LIMIT,
    Context,
    Definition,
    LiteJobs,
    OptionError,
    PayloadError,
    Unique,
    define,
)


@attrs.frozen
class Sample:
    """A class of which JSON knows nothing: its field has no form there."""

    values: complex

    def run(self) -> float:
        return abs(self.values)


def pack(sample: Sample) -> bytes:
    return struct.pack("<dd", sample.values.real, sample.values.imag)


def unpack(data: bytes) -> Sample:
    return Sample(complex(*struct.unpack("<dd", data)))


def squeeze(arguments: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(arguments).encode())


def stretch(data: bytes) -> dict[str, Any]:
    arguments: dict[str, Any] = json.loads(zlib.decompress(data))
    return arguments


Say = Definition[..., str, str]


@pytest.fixture
def say(jobs: LiteJobs) -> Say:
    @jobs.define(encode=squeeze, decode=stretch)
    def say(text: str, times: int = 1, *, loud: bool = False) -> str:
        return (text.upper() if loud else text) * times

    return say


def encoded_as(jobs: LiteJobs, made: Any) -> Say:
    """A definition whose encode gives this."""

    @jobs.define(name="odd", encode=lambda arguments: made, decode=stretch)
    def odd(text: str = "") -> str:
        return text

    return odd


def decoded_as(jobs: LiteJobs, decode: Callable[[bytes], Any]) -> Say:
    @jobs.define(name="odd", encode=squeeze, decode=decode)
    def odd(text: str = "") -> str:
        return text

    return odd


class TestAFunction:
    def test_gets_its_arguments_back(self, jobs: LiteJobs, say: Say) -> None:
        job = say.enqueue("ho", 3, loud=True)
        assert jobs.drain() == 1
        assert job.result() == "HOHOHO"

    def test_encodes_all_arguments_by_name_defaults_filled_in(
        self, jobs: LiteJobs, say: Say
    ) -> None:
        job = say.enqueue("ho")
        assert stretch(job.payload) == {"text": "ho", "times": 1, "loud": False}

    def test_may_take_a_context_which_does_not_travel(self, jobs: LiteJobs) -> None:
        @jobs.define(encode=squeeze, decode=stretch)
        def numbered(context: Context, text: str) -> str:
            assert type(context.job.payload) is bytes
            return f"{text} {context.attempt}"

        job = numbered.enqueue("attempt")
        jobs.drain()
        assert job.result() == "attempt 1"
        assert stretch(job.payload) == {"text": "attempt"}

    def test_may_have_arguments_that_json_does_not_have(self, jobs: LiteJobs) -> None:
        @jobs.define(
            encode=lambda arguments: pack(Sample(arguments["z"])),
            decode=lambda data: {"z": unpack(data).values},
        )
        def length(z: complex) -> float:
            return abs(z)

        job = length.enqueue(3 + 4j)
        jobs.drain()
        assert job.result() == 5.0

    def test_is_still_called_like_a_function(self, say: Say) -> None:
        assert say("ho", times=2) == "hoho"

    def test_made_for_no_queue_yet_keeps_its_encoding(self, jobs: LiteJobs) -> None:
        @define(encode=squeeze, decode=stretch)
        def later(text: str) -> str:
            return text

        jobs.register(later)
        job = later.using(priority=3).enqueue("now")
        assert stretch(job.payload) == {"text": "now"}
        assert job.priority == 3


class TestAClass:
    def test_gives_encode_its_instance_and_takes_one_back(self, jobs: LiteJobs) -> None:
        jobs.define(encode=pack, decode=unpack)(Sample)
        job: Any = jobs.enqueue(Sample(3 - 4j))
        assert job.payload == struct.pack("<dd", 3.0, -4.0)
        jobs.drain()
        assert job.result() == 5.0

    def test_runs_no_instance_of_another_class(self, jobs: LiteJobs) -> None:
        jobs.define(encode=pack, decode=lambda data: 5)(Sample)
        job = jobs.enqueue(Sample(1j))
        jobs.drain()
        assert job.refresh().error == (
            "PayloadError: the payload of 'Sample' does not fit: decode gave 5, not Sample"
        )


class TestBytes:
    def test_are_a_blob_in_the_row_and_come_back_as_they_were(
        self, jobs: LiteJobs, say: Say
    ) -> None:
        job = say.enqueue("\0é")
        write_by_hand(jobs, "CREATE TABLE kind AS SELECT typeof(payload) AS t FROM litejobs_job")
        with jobs.store.file.transaction(read_only=True) as tx:
            assert tx.execute("SELECT t FROM kind").fetchall() == [("blob",)]
        assert jobs.get(job.id).payload == job.payload == squeeze(stretch(job.payload))

    @pytest.mark.parametrize("count", [1, 2, 500])
    def test_travel_many_at_a_time(self, jobs: LiteJobs, say: Say, count: int) -> None:
        made = jobs.enqueue_many([say.bind(str(n)) for n in range(count)])
        assert [stretch(job.payload)["text"] for job in made] == [*map(str, range(count))]
        assert jobs.drain() == count
        assert [job.result() for job in made] == [*map(str, range(count))]

    def test_travel_with_those_of_other_definitions_and_with_json(
        self, jobs: LiteJobs, say: Say
    ) -> None:
        @jobs.define
        def plain(n: int) -> int:
            return n

        jobs.define(encode=pack, decode=unpack)(Sample)
        works = [say.bind("a"), say.bind("b"), plain.bind(1), Sample(1j), say.bind("c")]
        made = jobs.enqueue_many(works)
        jobs.drain()
        assert [job.result() for job in made] == ["a", "b", 1, 1.0, "c"]

    def test_have_no_fields_to_find_jobs_by_or_to_change(self, jobs: LiteJobs, say: Say) -> None:
        job = say.enqueue("ho")
        assert jobs.find(payload={"text": "ho"}) == []
        with pytest.raises(PayloadError, match="not a JSON object, so that no field can change"):
            jobs.change(job.id, to={"payload": {"text": "hi"}})
        assert jobs.change(job.id, to={"priority": 3}).moved == 1
        assert jobs.get(job.id).payload == job.payload
        assert jobs.doctor() == []

    def test_come_again_with_every_tick_of_a_schedule(
        self, jobs: LiteJobs, say: Say, clock: TurnedClock
    ) -> None:
        tick = jobs.every(60, say.bind("tick"), name="tick")
        jobs.drain()
        clock.turn(60)
        assert jobs.drain() == 1
        [job] = jobs.find()
        assert job.result() == "tick"
        [schedule] = jobs.schedules()
        assert schedule.payload == job.payload == tick.fire().payload

    def test_may_be_none_at_all(self, jobs: LiteJobs) -> None:
        @jobs.define(encode=lambda arguments: b"", decode=lambda data: {})
        def nothing() -> str:
            return "done"

        job = nothing.enqueue()
        jobs.drain()
        assert (job.payload, job.result()) == (b"", "done")

    def test_have_the_limit_of_payloads(self, jobs: LiteJobs) -> None:
        fits = encoded_as(jobs, b"x" * PAYLOAD_LIMIT).enqueue()
        assert len(jobs.get(fits.id).payload) == PAYLOAD_LIMIT

        @jobs.define(encode=lambda arguments: b"x" * (PAYLOAD_LIMIT + 1), decode=stretch)
        def huge() -> None: ...

        with pytest.raises(PayloadError, match=r"'huge' .* 4\.0 MiB, more than 4"):
            huge.enqueue()

    def test_go_through_processes_untouched(self, programs: Programs) -> None:
        programs.write(
            program="""
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db", durability="fast")
EVERY_BYTE = bytes(range(256))

def encode(arguments):
    return arguments["data"] * arguments["times"]

def decode(data):
    return {"data": data[:256], "times": len(data) // 256}

@jobs.define(encode=encode, decode=decode)
def check(data: bytes, times: int) -> int:
    assert data == EVERY_BYTE
    return times

if __name__ == "__main__":
    sizes = [*range(40), 4000]  # the last one is more than a pipe holds
    made = jobs.enqueue_many(check.bind(EVERY_BYTE, n) for n in sizes if n)
    jobs.work(2, until="empty")
    print([job.result(0) for job in made] == sizes[1:])
"""
        )
        assert programs.run("program.py") == (0, "True\n", "")


class TestUniqueJobs:
    def test_are_told_by_their_bytes(self, jobs: LiteJobs, say: Say) -> None:
        once = say.using(unique=Unique())
        assert [once.enqueue(text).duplicate for text in ("a", "b", "a")] == [False, False, True]

    def test_may_have_a_key_that_is_made_of_the_arguments(self, jobs: LiteJobs, say: Say) -> None:
        by_text = say.using(unique=Unique(key=lambda text, **_: text))
        assert [by_text.enqueue("a", n).duplicate for n in (1, 2)] == [False, True]

    def test_merge_their_arguments(self, jobs: LiteJobs, say: Say) -> None:
        def add(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
            return {**new, "times": old["times"] + new["times"]}

        summed = say.using(unique=Unique(key="one", on_conflict=add))
        first = summed.enqueue("a", 2)
        assert summed.enqueue("b", 3).id == first.id
        assert stretch(jobs.get(first.id).payload) == {"text": "b", "times": 5, "loud": False}

    def test_have_no_fields_that_anybody_could_look_into(self, say: Say) -> None:
        with pytest.raises(OptionError, match="an encoding of its own: give a key=, not fields="):
            say.using(unique=Unique(fields=("text",))).enqueue("a")


class TestJson:
    """Rows of text belong to a definition with an encoding, too."""

    def test_that_was_enqueued_before_there_was_an_encoding_still_runs(
        self, jobs: LiteJobs, say: Say
    ) -> None:
        job = say.enqueue("new")
        write_by_hand(jobs, """UPDATE litejobs_job SET payload = '{"text":"old","times":2}'""")
        jobs.drain()
        assert job.result() == "oldold"

    def test_is_encoded_when_it_comes_from_the_command_line(self, say: Say) -> None:
        bound = litejobs.bind_json(say, '{"text": "ho"}', {})
        assert bound.payload == squeeze({"text": "ho", "times": 1, "loud": False})

    def test_that_does_not_fit_is_refused_in_the_words_of_json(self, say: Say) -> None:
        with pytest.raises(PayloadError, match="expected str, got 5 @"):
            litejobs.bind_json(say, '{"text": 5}', {})

    def test_is_refused_where_json_has_no_form_for_the_type(self, jobs: LiteJobs) -> None:
        jobs.define(encode=pack, decode=unpack)(Sample)
        definition = jobs.registry.named("Sample")
        with pytest.raises(PayloadError, match="complex has no form in JSON"):
            litejobs.bind_json(definition, '{"values": 5}', {})


class TestTrouble:
    @pytest.mark.parametrize("made", ["text", None, bytearray(b"x"), 5])
    def test_what_is_not_bytes_is_refused_when_it_is_enqueued(
        self, jobs: LiteJobs, made: object
    ) -> None:
        with pytest.raises(PayloadError, match=r"'odd' .*encode gave .*, which is not bytes"):
            encoded_as(jobs, made).enqueue()
        assert jobs.count() == 0

    def test_an_encode_that_raises_is_named_and_its_error_is_the_cause(
        self, jobs: LiteJobs, say: Say
    ) -> None:
        with pytest.raises(PayloadError, match="encode raised TypeError: ") as raised:
            say.enqueue({1, 2})
        assert isinstance(raised.value.__cause__, TypeError)
        assert jobs.count() == 0

    def test_arguments_that_do_not_fit_the_function_are_refused_before(self, say: Say) -> None:
        with pytest.raises(PayloadError, match="unexpected keyword argument 'volume'"):
            say.enqueue("ho", volume=3)

    def test_a_decode_that_raises_leaves_the_job_blocked_and_its_traceback_in_the_log(
        self, jobs: LiteJobs, say: Say, caplog: pytest.LogCaptureFixture
    ) -> None:
        job = say.enqueue("ho")
        write_by_hand(jobs, "UPDATE litejobs_job SET payload = x'00ff'")
        assert jobs.drain() == 1
        kept = job.refresh()
        assert (kept.state, kept.attempt, kept.errors) == ("blocked", 0, ())
        assert (kept.error or "").startswith(
            "PayloadError: the payload of 'say' does not fit: decode raised error: Error -3"
        )
        assert "the payload of job 1 (say) cannot be read" in caplog.text
        assert "in stretch" in caplog.text

    @pytest.mark.parametrize("kind", ["plain", "async"])
    def test_a_decode_that_exits_or_cannot_say_what_is_wrong_blocks_only_its_job(
        self, jobs: LiteJobs, kind: str
    ) -> None:
        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError("mute")

        def read(data: bytes) -> dict[str, Any]:
            raise SystemExit("bye") if data == b'{"text":"exit"}' else MuteError

        def write(arguments: dict[str, Any]) -> bytes:
            return json.dumps(arguments, separators=(",", ":")).encode()

        async def later(text: str) -> str:
            return text

        def now(text: str) -> str:
            return text

        code: Callable[..., Any] = later if kind == "async" else now
        echo = jobs.define(encode=write, decode=read)(code)
        left = [echo.enqueue("exit"), echo.enqueue("mute")]
        assert jobs.drain() == 2
        errors = [str(job.refresh().error) for job in left]
        problems = [error.partition("decode raised ")[2] for error in errors]
        assert problems == ["SystemExit: bye", "an error that cannot be shown"]

    @pytest.mark.parametrize(
        ("made", "problem"),
        [
            ([], "decode gave [], not a dict of arguments by name"),
            ({"test": ""}, "what decode gave: odd() got an unexpected keyword argument 'test'"),
            ({1: ""}, "what decode gave: keywords must be strings"),
        ],
    )
    def test_a_decode_that_gives_something_else_leaves_the_job_blocked(
        self, jobs: LiteJobs, made: object, problem: str
    ) -> None:
        job = decoded_as(jobs, lambda data: made).enqueue()
        jobs.drain()
        kept = job.refresh()
        assert kept.state == "blocked"
        assert kept.error is not None
        assert problem in kept.error

    def test_bytes_for_a_definition_without_decode_block_its_job_and_say_why(
        self, jobs: LiteJobs
    ) -> None:
        @jobs.define
        def plain(n: int) -> int:
            return n

        job = plain.enqueue(math.prod(range(1, 5)))
        write_by_hand(jobs, "UPDATE litejobs_job SET payload = x'00'")
        jobs.drain()
        assert job.refresh().error == (
            "PayloadError: the payload of 'plain' does not fit: "
            "JSON is expected, got 1 bytes: give the definition a decode="
        )

    def test_one_without_the_other_is_refused(self, jobs: LiteJobs) -> None:
        with pytest.raises(OptionError, match="decode: missing"):
            jobs.define(encode=squeeze)
        with pytest.raises(OptionError, match="encode: missing"):
            jobs.define(decode=stretch)

    def test_what_cannot_be_called_is_refused(self, jobs: LiteJobs) -> None:
        nothing: Any = "zlib"
        with pytest.raises(OptionError, match="encode: expected a function, got 'zlib'"):
            jobs.define(encode=nothing, decode=stretch)

    def test_one_job_has_no_encoding_of_its_own(self, say: Say) -> None:
        odd: Any = {"encode": squeeze}
        with pytest.raises(OptionError, match="encode: belongs to the definition"):
            say.using(**odd)


class TestOnTheCommandLine:
    def test_show_says_how_many_bytes_there_are(
        self, jobs: LiteJobs, say: Say, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = say.enqueue("ho")
        assert litejobs.main(["show", str(jobs.path), str(job.id)]) == 0
        assert f"payload:      <{len(job.payload)} bytes>\n" in capsys.readouterr().out

    @pytest.mark.parametrize("command", ["show", "list"])
    def test_json_carries_the_bytes_as_base64(
        self, jobs: LiteJobs, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = encoded_as(jobs, b"\x00\xff").enqueue()
        ids = [str(job.id)] if command == "show" else []
        assert litejobs.main([command, str(jobs.path), *ids, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        shown = printed if command == "show" else printed[0]
        assert shown["payload"] == {"base64": "AP8="}
