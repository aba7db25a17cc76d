"""A small office: mails, bills, an import, a price list, and a report every night at three.

    python examples/small_office.py                   # an evening and a night, in seconds
    python examples/small_office.py --real            # with worker processes, in real time
    python examples/small_office.py --db office.db    # keeps the queue's file

The first turns a clock from minute to minute and runs what is due in this process.
"""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

from litejobs import Constant, Event, LiteJobs, TurnedClock, Unique, define

OFFICE = ZoneInfo("Europe/Berlin")
CLOSING = datetime(2026, 3, 27, 18, tzinfo=OFFICE)


@define(queue="mail")  # This queue has a rate limit, see below.
def mail(to: str) -> str:
    return f"sent to {to}"


@define(key=lambda customer, **_: customer)  # One at a time for each customer.
def bill(customer: str, hours: int) -> str:
    time.sleep(0.4)
    return f"{customer} owes {80 * hours} euros"


@define(unique=Unique(scope="active"))  # As long as it waits or runs, there is no second one.
def import_bookings(account: str) -> str:
    time.sleep(0.5)
    return f"{account} is up to date"


@define(max_attempts=2, backoff=Constant(1))  # Twice, and then it is a dead letter.
def read_prices(file: Path) -> str:
    return f"an hour costs {file.read_text()}"


@define
def report() -> str:
    return "all is quiet"


def say(line: str) -> None:
    print(f"{line}\n", end="")  # At once: what is listened to is told in another thread.


def evening(jobs: LiteJobs, prices: Path, let_time_pass: Callable[[], None]) -> None:
    """All at once: four mails, an import, a mistake, two bills for each of two customers."""

    @jobs.on("started", "completed", "retrying", "failed")
    def tell(event: Event) -> None:
        job = jobs.get(event.job or 0)
        said = job.result() if event.kind == "completed" else event.error or job.payload
        when = f"{event.at.astimezone(OFFICE):%a %H:%M:%S}"
        say(f"{when}  {job.id} {job.name} {event.kind}: {said}")
        if event.kind == "started" and job.name == "import_bookings":
            again = import_bookings.enqueue("savings")
            say(f"  somebody clicks again: still job {again.id}, {again.duplicate=}")

    jobs.enqueue_many(mail.bind(f"{name}@example.com") for name in ("ann", "bob", "cy", "di"))
    import_bookings.enqueue("savings")
    listing = read_prices.enqueue(prices)
    jobs.enqueue_many(bill.bind(customer, hours) for customer in ("Ox", "Yak") for hours in (1, 2))
    while listing.refresh().state != "failed" or jobs.count(name="mail", state="pending"):
        let_time_pass()
    prices.write_text("80 euros")
    say(f"  the price list is there now, so once more: {jobs.retry(listing.id)}")
    while not (listing.refresh().finished and jobs.count(name="report", state="completed")):
        let_time_pass()


def main() -> None:
    parser = argparse.ArgumentParser(description="A small office and its jobs.")
    parser.add_argument("--real", action="store_true", help="with processes, in real time")
    parser.add_argument("--db", type=Path, help="keep the queue in this file")
    options = parser.parse_args()
    if options.db and options.db.exists():
        sys.exit(f"{options.db} is there already: delete it, or name another file")
    with TemporaryDirectory() as folder:
        run = really if options.real else turning_a_clock
        run(options.db or Path(folder, "office.db"), Path(folder, "prices.txt"))
    if options.db:
        print(f"All is in {options.db}: `litejobs list {options.db}` shows it.")


def turning_a_clock(db: Path, prices: Path) -> None:
    clock = TurnedClock(CLOSING)
    with LiteJobs(db, clock=clock, durability="fast") as jobs:
        jobs.register(mail, bill, import_bookings, read_prices, report)
        jobs.cron("0 3 * * *", report, timezone="Europe/Berlin")
        jobs.queue("mail").set(rate="1/min")

        def let_time_pass() -> None:
            jobs.drain()
            clock.turn(60)

        evening(jobs, prices, let_time_pass)


def really(db: Path, prices: Path) -> None:
    with LiteJobs(db) as jobs:
        jobs.register(mail, bill, import_bookings, read_prices, report)
        jobs.every(2, report)
        jobs.queue("mail").set(rate="1/s")
        with jobs.start(workers=3):
            evening(jobs, prices, lambda: time.sleep(0.05))


if __name__ == "__main__":
    main()
