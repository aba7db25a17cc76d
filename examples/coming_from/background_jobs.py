"""Coming from asonix' background-jobs (Rust): `python examples/coming_from/background_jobs.py`.

Comments say how background-jobs has it; n is the number of the attempt that failed, from 1.
"""

from datetime import timedelta
from typing import NamedTuple

import attrs

from litejobs import Constant, Context, Exponential, LiteJobs


class State(NamedTuple):
    """type State: made once in each worker, and found in the context."""

    greeting: str


def connect() -> State:
    return State("hello")


jobs = LiteJobs("from-background-jobs.db", state=connect)


# impl Job, NAME, QUEUE, run(self, state): a class with run().
# MAX_RETRIES: Count(5) are 6 runs; here 5. BACKOFF: Exponential(2) is 2ⁿ s; here base × factorⁿ⁻¹.
# TIMEOUT: 15 s; here none by default, and the job is killed at the end.
@jobs.define(
    name="MyJob",
    queue="default",
    max_attempts=6,
    backoff=Exponential(2, factor=2, jitter="none"),
    timeout=15,
)
@attrs.frozen
class MyJob:
    to: str

    def run(self, context: Context[State]) -> str:
        return f"{context.state.greeting} {self.to}"


# MAX_RETRIES: Infinite. BACKOFF: Linear(5) is constant there, and grows here.
@jobs.define(max_attempts=None, backoff=Constant(5))
@attrs.frozen
class Stubborn:
    def run(self) -> None: ...


jobs.every(timedelta(minutes=5), MyJob(to="all"))  # every(duration, job): each tick fires once

if __name__ == "__main__":
    job = jobs.enqueue(MyJob(to="you"))  # queue(job)
    jobs.enqueue(Stubborn(), delay=60)  # schedule(job, time)
    jobs.work(workers=1, until="empty")
    print(job.result())
