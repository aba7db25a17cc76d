"""Coming from Dramatiq: `python examples/coming_from/dramatiq.py`.

Comments say how Dramatiq has it; n is the number of the attempt that failed, from 1.
"""

from datetime import timedelta

from litejobs import Exponential, Fail, LiteJobs

jobs = LiteJobs("from-dramatiq.db")  # dramatiq.set_broker(RedisBroker())


# @dramatiq.actor(max_retries=20): that is 21 runs, with waits of 15 s × 2ⁿ⁻¹, spread by half, at
# most 7 days. time_limit is 10 minutes: an exception is raised in the thread; here it asks, and
# then kills. max_age=60_000 drops it after a minute.
@jobs.define(
    queue="emails",  # queue_name="emails"
    max_attempts=21,
    backoff=Exponential(15, cap=timedelta(days=7)),
    timeout=600,
    expires=60,
)
def send_email(to: str) -> str:
    if not to:
        raise Fail("nobody to send it to")  # throws=…: no retry
    return f"sent to {to}"


if __name__ == "__main__":
    job = send_email.enqueue("you")  # send_email.send("you")
    send_email.using(delay=10).enqueue("you")  # .send_with_options(args=("you",), delay=10_000)
    send_email.using(priority=1).enqueue("me")  # priority=0: there lower first, here higher
    send_email.enqueue("")
    jobs.work(workers=2, until="empty")  # `dramatiq tasks`
    print(job.result())  # .get_result(block=True), with a results backend
    print([each.error for each in jobs.find(state="failed")])  # the dead-letter queue
