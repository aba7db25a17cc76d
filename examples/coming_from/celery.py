"""Coming from Celery: `python examples/coming_from/celery.py`.

Comments say how Celery has it; n is the number of the attempt that failed, from 1. There is no
broker, no result backend and no beat: all is in the file, and any node fires schedules.
"""

from litejobs import Constant, Exponential, LiteJobs, Retry

jobs = LiteJobs("from-celery.db")  # app = Celery("tasks", broker="redis://…", backend="…")


@jobs.define  # @app.task; calling it only calls it, in both
def send_email(to: str) -> str:
    return f"sent to {to}"


# autoretry_for=(OSError,): by default Celery retries after nothing, litejobs after any exception.
# max_retries=3 are 4 runs. default_retry_delay=180; here it is 5 s × 2ⁿ⁻¹, spread by half.
@jobs.define(retry_on=(OSError,), max_attempts=4, backoff=Constant(180))
def download(url: str) -> str:
    return url


# retry_backoff=True: between 0 and 2ⁿ⁻¹ s, at most 600 s.
@jobs.define(backoff=Exponential(1, cap=600, jitter="full"))
def upload(url: str) -> str:
    return url


# soft_time_limit=30, time_limit=35: asks the job to end, and kills it when the grace is over.
@jobs.define(timeout=30, grace=5)
def convert(film: str) -> str:
    return film


@jobs.define  # bind=True; raise self.retry(countdown=60) goes past max_retries, and so here
def poll(ready: bool) -> None:
    if not ready:
        raise Retry(60)  # Retry() keeps to the limit, and to the backoff.


# What a crash cuts off is lost there (acks_early) or may run twice after an hour (acks_late on
# Redis). Here a crash costs an attempt, and a node that dies none. To run it once at most:
@jobs.define(max_attempts=1)
def charge(card: str) -> None: ...


@jobs.cron("0 3 * * *")  # beat_schedule, crontab(hour=3, minute=0)
def report() -> str:
    return "all is quiet"


if __name__ == "__main__":
    jobs.queue("mail").set(rate="10/m")  # rate_limit="10/m", of a task, for each worker
    job = send_email.enqueue("you")  # send_email.delay("you")
    send_email.using(delay=60).enqueue("you")  # .apply_async(["you"], countdown=60)
    send_email.using(priority=9).enqueue("you")  # higher first, as on RabbitMQ; not as on Redis
    send_email.using(queue="mail").enqueue("you")
    for url in ("a", "b"):
        download.enqueue(url)
        upload.enqueue(url)
    convert.enqueue("film.mov")
    poll.enqueue(True)
    charge.enqueue("visa")
    jobs.work(workers=2, until="empty")  # celery worker --concurrency 2; no beat beside it
    print(job.result())  # result.get(timeout=…)
    print(jobs.count(state="completed"), "completed")
