"""Coming from APScheduler 3: `python examples/coming_from/apscheduler.py`.

Comments say how APScheduler has it. A clock that is turned shows ten minutes of schedules at once.
"""

from datetime import timedelta

from litejobs import Event, LiteJobs, TurnedClock

clock = TurnedClock()
jobs = LiteJobs("from-apscheduler.db", clock=clock)


# Errors are logged there and no job is tried again; here 5 runs, then a dead letter.
@jobs.define(max_attempts=1)
def report() -> str:
    return "all is quiet"


# add_job(report, "cron", hour=3), in the local time zone; here in UTC, unless you give a zone.
jobs.cron("0 3 * * *", report, name="nightly", timezone="Europe/Berlin")
jobs.every(timedelta(minutes=5), report)  # add_job(report, "interval", minutes=5)
# misfire_grace_time=1: what is later is skipped. Here it is made up for, however late.
jobs.cron("0 3 * * *", report, name="in time", misfire="skip", grace=1)
# misfire_grace_time=None: one run for all that was missed; with coalesce=False a run for each.
jobs.every(60, report, name="once", misfire="once", grace=0)
jobs.every(60, report, name="each", misfire="all")
# max_instances=1: the second one is skipped. Here they may overlap.
jobs.every(60, report, name="alone", overlap="skip")


@jobs.on("failed")  # add_listener(tell, EVENT_JOB_ERROR)
def tell(event: Event) -> None:
    print(f"job {event.job}: {event.error}")


if __name__ == "__main__":
    # BackgroundScheduler().start() has 10 threads: `with jobs.start(threads=10):` is the same.
    jobs.drain()
    for schedule in jobs.schedules():
        print(f"{schedule.name}: {schedule.words}")
    clock.turn(timedelta(minutes=10))
    print(jobs.drain(), "jobs after ten minutes of sleep")
    jobs.schedule("each").pause()  # scheduler.pause_job("each")
    jobs.schedule("report").fire()  # job.modify(next_run_time=datetime.now())
    print(jobs.drain(), "job at once")
