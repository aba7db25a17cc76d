"""Coming from xraph/dispatch (Go): `python examples/coming_from/xraph_dispatch.py`.

Comments say how dispatch has it; n is the number of the attempt that failed, from 1.
"""

from litejobs import Exponential, LiteJobs

jobs = LiteJobs("from-dispatch.db")


# job.NewDefinition("send_email", …) and engine.Register: the decorator does both.
# WithMaxRetries(3) are 4 runs; here 5. The default backoff is between 0 and 1 s × 2ⁿ⁻¹, at most a
# minute; here 5 s × 2ⁿ⁻¹, spread by half, at most an hour. WithTimeout: 5 min, and the context is
# cancelled; here none by default, and the job is asked to end, then killed.
@jobs.define(
    name="send_email", max_attempts=4, backoff=Exponential(1, cap=60, jitter="full"), timeout=300
)
def send_email(to: str) -> str:
    return f"sent to {to}"


@jobs.cron("0 9 * * *")  # engine.RegisterCron: each tick fires once, whatever number of nodes
def report() -> str:
    return "all is quiet"


if __name__ == "__main__":
    # queue.Config{MaxConcurrency: 3, RateLimit: 10}, for each process; here for all nodes.
    jobs.queue("critical").set(concurrency=3, rate="10/s")
    send_email.using(delay=600).enqueue("you")  # engine.EnqueueAt(…, t)
    # EnqueueWithPriority(…, 10), EnqueueOnQueue(…, "critical"): higher first, in both.
    job = send_email.using(priority=10, queue="critical").enqueue("you")
    jobs.work(workers=1, until="empty")
    print(job.result())
    print(jobs.retry(state="failed"))  # the DLQ, Replay
