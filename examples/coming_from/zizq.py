"""Coming from Zizq (Rust): `python examples/coming_from/zizq.py`.

Comments say how Zizq has it; n is the number of the attempt that failed, from 1.
"""

import random
from datetime import timedelta

import attrs

from litejobs import LiteJobs, Polynomial, Retention, Unique

jobs = LiteJobs("from-zizq.db")


# impl JobKind, NAME, QUEUE. PRIORITY: 32768, and lower first; here 0, and higher first.
# RETRY_LIMIT: 25, which are 26 runs; here 5. BACKOFF: n⁴ s + 15 s + between 0 and 30 s × n.
# RETENTION: completed none, dead 7 days; here 1 day and 30 days.
# unique_key(): until it starts; here some fields, and the same scope by default.
@jobs.define(
    name="send_email",
    queue="emails",
    priority=32768 - 50,
    max_attempts=26,
    backoff=lambda n: n**4 + 15 + random.uniform(0, 30) * n,
    retention=Retention(completed=0, failed=timedelta(days=7)),
    unique=Unique(["to"]),
)
@attrs.frozen
class SendEmail:
    to: str

    def run(self) -> None:
        print("sent to", self.to, flush=True)


@jobs.define(key="stripe", key_limit=3)  # a budget of 3 WhileInFlight
async def charge(customer: str) -> str:
    return customer


if __name__ == "__main__":
    jobs.enqueue_many([SendEmail(to="you"), SendEmail(to="me")])  # enqueue_bulk(): all or none
    # One job may have a curve of its own: n⁴ s, spread by half.
    charge.using(backoff=Polynomial(1, 4, cap=timedelta(days=5))).enqueue("Ox")
    print(jobs.change(queue="emails", to={"priority": 10}))  # patching what waits
    # Worker::builder().concurrency(25): so many async handlers in each worker.
    jobs.work(workers=1, concurrency=25, until="empty")
