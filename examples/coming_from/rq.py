"""Coming from RQ: `python examples/coming_from/rq.py`.

Comments say how RQ has it; n is the number of the attempt that failed, from 1.
"""

from datetime import UTC, datetime, timedelta

from litejobs import Context, LiteJobs, Retention

jobs = LiteJobs("from-rq.db")  # Queue(connection=Redis())


# No retry by default, and job_timeout is 180 s; here 5 runs, and no timeout.
# result_ttl is 500 s and failure_ttl a year; here a day, and 30 days for failed jobs.
@jobs.define(
    max_attempts=1,
    timeout=180,
    retention=Retention(completed=500, failed=timedelta(days=365)),
)
def send_email(to: str) -> str:
    return f"sent to {to}"


# Retry(max=3, interval=[10, 30, 60]): 4 runs, and any function of n.
@jobs.define(max_attempts=4, backoff=lambda n: [10, 30, 60][min(n, 3) - 1])
def count_words(context: Context, pages: list[str]) -> int:
    words = 0
    for page in context.track(pages):  # job.meta["done"] = …; job.save_meta()
        words += len(page.split())
    return words


if __name__ == "__main__":
    job = count_words.enqueue(["one page", "and one more"])  # queue.enqueue(count_words, […])
    moment = datetime(2030, 1, 1, tzinfo=UTC)  # Aware datetimes only.
    send_email.using(at=moment).enqueue("you")  # queue.enqueue_at(moment, send_email, "you")
    send_email.using(delay=60).enqueue("you")  # queue.enqueue_in(timedelta(seconds=60), …)
    send_email.using(priority=1).enqueue("you")  # at_front=True, `rq worker high low`
    # RateLimit("acme", concurrency=2): at most two at a time with this key.
    send_email.using(key="acme", key_limit=2).enqueue("you")
    jobs.work(workers=2, until="empty")  # Worker([queue]).work(burst=True)
    print(job.result(timeout=10), "words")  # job.return_value()
    print(jobs.retry(state="failed"))  # FailedJobRegistry, `rq requeue --all`
