"""Recurring jobs: a night and a morning in a moment: `python examples/schedules.py`.

A clock that is turned stands for the time; with `jobs.work()` instead of `drain` it is real.
"""

from datetime import datetime, timedelta
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

from litejobs import LiteJobs, TurnedClock, define

BERLIN = ZoneInfo("Europe/Berlin")


@define
def back_up(what: str) -> str:
    return what


@define
def check() -> None: ...


if __name__ == "__main__":
    clock = TurnedClock(datetime(2026, 10, 24, 22, tzinfo=BERLIN))  # The clock changes this night.
    with TemporaryDirectory() as folder, LiteJobs(f"{folder}/jobs.db", clock=clock) as jobs:
        jobs.register(back_up, check)
        jobs.cron("30 2 * * *", back_up.bind("all"), name="nightly", timezone="Europe/Berlin")
        jobs.cron("0 7 * * MON-FRI", back_up.bind("mail"), name="weekdays")
        jobs.every(timedelta(hours=2), check, overlap="skip")
        jobs.drain()  # Now the schedules are in the file.
        for schedule in jobs.schedules():
            print(f"{schedule.name}: {schedule.words}")
        for _ in range(40):
            clock.turn(timedelta(minutes=15))
            jobs.drain()
        nightly = [job.run_at.astimezone(BERLIN) for job in jobs.find(schedule="nightly")]
        print("02:30 came twice; the backup ran at", *[f"{moment:%H:%M}" for moment in nightly])
        print(jobs.count(schedule="check"), "checks in ten hours")
        jobs.schedule("check").pause()
        jobs.schedule("weekdays").fire()
        print(jobs.drain(), "job at once:", jobs.find(schedule="weekdays")[0].result())
