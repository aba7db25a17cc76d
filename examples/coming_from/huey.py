"""Coming from huey: `python examples/coming_from/huey.py`.

Comments say how huey has it; n is the number of the attempt that failed, from 1.
"""

from litejobs import Constant, Exponential, LiteJobs

jobs = LiteJobs("from-huey.db")  # huey = SqliteHuey(filename="huey.db")


# @huey.task(): retries=0 is 1 run; here 5 by default. Calling it only calls it here.
@jobs.define(max_attempts=1)
def send_email(to: str) -> str:
    return f"sent to {to}"


@jobs.define(max_attempts=3, backoff=Constant(60))  # retries=2, retry_delay=60
def download(url: str) -> str:
    return url


# retries=2, retry_delay=60, retry_backoff=2: doubled each time.
@jobs.define(max_attempts=3, backoff=Exponential(60, jitter="none"))
def upload(url: str) -> str:
    return url


@jobs.define(key="report")  # lock_task("report"): there the second one fails, here it waits
def write_report(month: str) -> str:
    return month


# periodic_task(crontab(minute="0", hour="3")): there a missed one is lost, here made up for once.
@jobs.cron("0 3 * * *", misfire="skip")
def clean_up() -> None: ...


if __name__ == "__main__":
    # rate_limit("mail", 10, per=60): ten at once, the others fail and are retried; here they wait,
    # and are spread evenly unless you give a burst.
    jobs.queue("mail").set(rate="10/m", burst=10)
    job = send_email.using(queue="mail").enqueue("you")  # send_email("you")
    send_email.using(delay=60).enqueue("you")  # send_email.schedule(("you",), delay=60)
    send_email.using(expires=60).enqueue("you")  # expires=60; here from when it is due
    for name in ("a", "b"):
        download.enqueue(name)
        upload.enqueue(name)
        write_report.enqueue(name)
    # huey_consumer has one thread; here it is processes, one for each core, unless you say so.
    with jobs.start(threads=1):
        print(job.result(timeout=10))  # result(blocking=True, timeout=10)
