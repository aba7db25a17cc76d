"""Coming from Forj, goforj/queue (Go): `python examples/coming_from/goforj_queue.py`.

Comments say how Forj has it; n is the number of the attempt that failed, from 1.
"""

from collections.abc import Callable
from typing import Any

from litejobs import Constant, Context, Fail, LiteJobs, Unique

jobs = LiteJobs("from-forj.db")


# queue.NewJob("emails:welcome").OnQueue("emails"), Register: the definition has both.
# .Retry(n): 0, which is 1 run; here 5. .Backoff(d): always the same wait, none by default; here
# 5 s × 2ⁿ⁻¹, spread by half, at most an hour.
@jobs.define(name="emails:welcome", queue="emails", max_attempts=1, backoff=Constant(0))
def welcome(user: str) -> str:
    if not user:
        raise Fail("no such user")  # queue.Permanent(err)
    return f"welcome, {user}"


# .UniqueFor(45s): also after the job has ended, and then ErrDuplicate. A plain Unique() holds until
# the job starts, and gives the job that is there.
@jobs.define(
    unique=Unique(scope="exists", ttl=45, on_conflict="raise"),
    backoff=Constant(0.5),
    queue="reports",
)
def report(month: str) -> str:
    return month


@jobs.middleware.run  # WithMiddleware: around every run, the first outermost
def shout(context: Context, call_next: Callable[[], Any]) -> Any:
    result = call_next()
    return result.upper() if result else None


if __name__ == "__main__":
    jobs.queue("reports").set(concurrency=2)  # QUEUE_REPORTS_WORKERS=2
    job = welcome.using(delay=0.3).enqueue("ada")  # Dispatch(job.Delay(d))
    report.enqueue("May")
    # forj worker --queue reports; with both queues here
    jobs.work(queues=["reports", "emails"], workers=1, until="empty")
    with jobs.start(workers=1):
        print(job.result(timeout=10))
