"""Tracing: spans around enqueue and attempts, and how they are linked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from programs import Programs, lines

from litejobs import Cancel, Constant, Context, Fail, LiteJobs, OptionError, Retry, Snooze

OUTCOMES: dict[str, BaseException] = {
    "retry": Retry(60),
    "snoozed": Snooze(60),
    "failed": Fail("no such page"),
    "cancelled": Cancel("gone"),
    "error": ValueError("broken"),
}


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """A process has one tracer provider, once and for all."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    exporter.clear()
    return Spans(exporter)


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.kind is kind]

    @property
    def sent(self) -> list[ReadableSpan]:
        return self.of(SpanKind.PRODUCER)

    @property
    def run(self) -> list[ReadableSpan]:
        return self.of(SpanKind.CONSUMER)


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context: trace.SpanContext | None = span.get_span_context()
    assert context is not None
    return context


@pytest.fixture
def traced(jobs: LiteJobs) -> LiteJobs:
    jobs.trace()

    @jobs.define(queue="mails", max_attempts=2, backoff=Constant(0))
    def send(outcome: str) -> None:
        if outcome in OUTCOMES:
            raise OUTCOMES[outcome]

    @jobs.define(name="answer", queue="slow")
    async def answer() -> str:
        with trace.get_tracer("test").start_as_current_span("inside"):
            return "done"

    return jobs


def enqueue(jobs: LiteJobs, outcome: str = "return") -> Any:
    return jobs.registry.named("send").enqueue(outcome)


def test_enqueue_is_a_span_below_the_one_that_is_current(traced: LiteJobs, spans: Spans) -> None:
    with trace.get_tracer("test").start_as_current_span("request") as request:
        job = enqueue(traced)
    [sent] = spans.sent
    assert sent.name == "enqueue send"
    assert sent.parent is not None
    assert sent.parent.span_id == request.get_span_context().span_id
    assert about(sent) == {
        "messaging.system": "litejobs",
        "messaging.operation.type": "send",
        "messaging.operation.name": "enqueue",
        "messaging.destination.name": "mails",
        "messaging.message.id": str(job.id),
    }
    context = context_of(sent)
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert job.refresh().headers == {"traceparent": expected}


def test_an_attempt_is_a_trace_of_its_own_linked_to_the_enqueue(
    traced: LiteJobs, spans: Spans
) -> None:
    job = enqueue(traced)
    with trace.get_tracer("test").start_as_current_span("whoever drains"):
        traced.drain()
    [sent], [run] = spans.sent, spans.run
    assert (run.name, run.parent) == ("send", None)
    assert context_of(run).trace_id != context_of(sent).trace_id
    [link] = run.links
    assert link.context.trace_id == context_of(sent).trace_id
    assert link.context.span_id == context_of(sent).span_id
    assert run.status.status_code is StatusCode.UNSET
    assert about(run) == {
        "messaging.system": "litejobs",
        "messaging.operation.type": "process",
        "messaging.operation.name": "run",
        "messaging.destination.name": "mails",
        "messaging.message.id": str(job.id),
        "litejobs.definition": "send",
        "litejobs.attempt": 1,
        "litejobs.outcome": "completed",
    }


def test_each_attempt_has_its_span(traced: LiteJobs, spans: Spans) -> None:
    enqueue(traced, "error")
    while traced.drain():
        pass
    assert [about(span)["litejobs.attempt"] for span in spans.run] == [1, 2]
    assert {span.links[0].context.span_id for span in spans.run} == {
        context_of(spans.sent[0]).span_id
    }


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_how_an_attempt_ended_is_told(traced: LiteJobs, spans: Spans, outcome: str) -> None:
    enqueue(traced, outcome)
    traced.drain()
    span = spans.run[0]
    assert about(span)["litejobs.outcome"] == outcome
    if outcome in ("snoozed", "cancelled"):
        assert span.status.status_code is StatusCode.UNSET
        assert (span.events, about(span).get("error.type")) == ((), None)
        return
    error = OUTCOMES[outcome]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == str(error)
    assert about(span)["error.type"] == type(error).__name__
    [event] = span.events
    assert event.name == "exception"
    assert str(error) == dict(event.attributes or {})["exception.message"]


def test_what_a_coroutine_does_is_inside_its_attempt(traced: LiteJobs, spans: Spans) -> None:
    traced.registry.named("answer").enqueue()
    traced.drain()
    [run] = spans.run
    [inside] = [span for span in spans.of(SpanKind.INTERNAL) if span.name == "inside"]
    assert inside.parent is not None
    assert inside.parent.span_id == context_of(run).span_id


def test_what_a_handler_enqueues_belongs_to_its_attempt(jobs: LiteJobs, spans: Spans) -> None:
    jobs.trace()

    @jobs.define
    def child() -> None: ...

    @jobs.define
    def parent() -> None:
        child.enqueue()

    parent.enqueue()
    jobs.drain()
    by_parent, later = spans.sent[1], spans.run
    assert by_parent.parent is not None
    assert by_parent.parent.span_id == context_of(later[0]).span_id
    assert later[1].links[0].context.span_id == context_of(by_parent).span_id


def test_many_jobs_are_one_span(traced: LiteJobs, spans: Spans) -> None:
    send, answer = traced.registry.named("send"), traced.registry.named("answer")
    traced.enqueue_many([send.bind("x"), send.bind("y")])
    traced.enqueue_many([send.bind("x"), answer.bind()])
    alike, mixed = spans.sent
    assert (alike.name, mixed.name) == ("enqueue send", "enqueue jobs")
    assert about(alike)["messaging.batch.message_count"] == 2
    assert about(alike)["messaging.destination.name"] == "mails"
    assert "messaging.destination.name" not in about(mixed)


def test_other_headers_are_kept(traced: LiteJobs, spans: Spans) -> None:
    job = traced.registry.named("send").using(headers={"tenant": "7"}).enqueue("x")
    assert job.refresh().headers.keys() == {"tenant", "traceparent"}


def test_a_job_that_nobody_traced_has_a_span_without_a_link(jobs: LiteJobs, spans: Spans) -> None:
    @jobs.define
    def plain(context: Context) -> None: ...

    plain.enqueue()
    plain.using(headers={"traceparent": "rubbish"}).enqueue()
    jobs.trace()
    jobs.trace()
    jobs.drain()
    assert [span.links for span in spans.run] == [(), ()]


def test_a_failing_enqueue_is_an_error(traced: LiteJobs, spans: Spans) -> None:
    @traced.middleware.enqueue
    def refuse(works: Any, call_next: Any) -> Any:
        raise PermissionError("not now")

    with pytest.raises(PermissionError):
        enqueue(traced)
    [sent] = spans.sent
    assert sent.status.status_code is StatusCode.ERROR


def test_once_work_has_started_it_is_too_late(jobs: LiteJobs) -> None:
    @jobs.define
    def plain() -> None: ...

    with jobs.start(threads=1), pytest.raises(OptionError, match="after work had started"):
        jobs.trace()


def test_without_the_package_it_says_what_to_install(programs: Programs) -> None:
    programs.write(main=WITHOUT)
    code, output, errors = programs.run("main.py")
    assert (code, errors) == (0, "")
    assert output.endswith("pip install litejobs[otel]\n")


WITHOUT = """
import sys

sys.modules["opentelemetry"] = None
from litejobs import LiteJobs, OptionError

try:
    LiteJobs("jobs.db").trace()
except OptionError as error:
    print(error)
"""


def test_workers_make_the_spans_of_their_attempts(programs: Programs, log: Path) -> None:
    programs.write(main=PROGRAM)
    code, output, errors = programs.run("main.py", log)
    assert (code, output, errors) == (0, "done\n", "")
    sent, inside, run = map(json.loads, lines(log))
    assert (sent["name"], inside["name"], run["name"]) == ("enqueue work", "inside", "work")
    assert sent["pid"] != run["pid"]
    assert run["links"] == [sent["span"]]
    assert inside["parent"] == run["span"]


PROGRAM = """
import json
import os
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from litejobs import LiteJobs
from programs.trouble import note


class ToLog(SpanExporter):
    def export(self, spans):
        for span in spans:
            note(sys.argv[1], json.dumps({
                "name": span.name,
                "span": span.context.span_id,
                "parent": span.parent and span.parent.span_id,
                "links": [link.context.span_id for link in span.links],
                "pid": os.getpid(),
            }))
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToLog()))
trace.set_tracer_provider(provider)

jobs = LiteJobs("jobs.db")
jobs.trace()


@jobs.define
def work() -> str:
    with trace.get_tracer("test").start_as_current_span("inside"):
        return "done"


if __name__ == "__main__":
    job = work.enqueue()
    jobs.work(workers=1, until="empty")
    print(job.result())
"""
