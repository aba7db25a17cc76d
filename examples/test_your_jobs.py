"""How to test a program that uses litejobs: `python -m pytest examples/test_your_jobs.py`.

pytest finds the fixture `record_jobs` by itself once litejobs is installed. It puts a private
file and a clock that stands still under the program's LiteJobs, for the length of one test.
"""

from datetime import timedelta

import pytest

from litejobs import Constant, LiteJobs, Recorder, RecordJobs, Retry

# The program. Of course it stands in a module of its own.

jobs = LiteJobs("shop.db")
stock = {"tea": 2}


@jobs.define(queue="mails")
def send_email(to: str, subject: str) -> str:
    return f"{subject!r} to {to}"


@jobs.define(max_attempts=3, backoff=Constant(timedelta(minutes=10)))
def deliver(customer: str, article: str) -> None:
    if not stock.get(article):
        raise Retry(reason=f"no {article} in stock")
    stock[article] -= 1
    send_email.enqueue(customer, subject=f"Your {article} is on its way")


def order(customer: str, article: str) -> None:
    send_email.enqueue(customer, subject="Thank you for your order")
    deliver.using(delay=timedelta(hours=1)).enqueue(customer, article)


# Its tests.


@pytest.fixture
def recorder(record_jobs: RecordJobs) -> Recorder:
    return record_jobs(jobs)


def test_an_order_is_confirmed_now_and_delivered_in_an_hour(recorder: Recorder) -> None:
    order("ann@example.com", "tea")
    recorder.assert_enqueued(send_email, to="ann@example.com", times=1)
    [delivery] = recorder.assert_enqueued(deliver, article="tea")
    assert delivery.run_at == recorder.clock.now + timedelta(hours=1)


def test_a_delivery_is_announced(recorder: Recorder) -> None:
    order("ann@example.com", "tea")
    recorder.clock.turn(timedelta(hours=1))
    assert recorder.drain() == 3
    recorder.assert_enqueued(send_email, subject="Your tea is on its way")


def test_what_is_not_in_stock_is_tried_three_times(recorder: Recorder) -> None:
    order("ann@example.com", "cake")
    recorder.drain_all(errors="keep")
    assert [failure.message for _, failure in recorder.failures] == ["no cake in stock"] * 3
    recorder.assert_not_enqueued(send_email, subject="Your cake is on its way")
