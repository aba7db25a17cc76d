"""Coming from State's jobs (C++): `python examples/coming_from/state_cpp.py`.

Comments say how State has it; n is the number of the attempt that failed, from 1.
"""

from datetime import timedelta

import attrs

from litejobs import Exponential, LiteJobs, Retention, define

jobs = LiteJobs("from-state.db")


# class SendEmail : public job, with name(), queue() and handle(). Its fields are the payload: no
# serialize(). The decorator registers it: no register_job(). max_job_timeout_ms_: none, in both;
# when it is over, the worker is killed and the attempt has failed. retention_seconds_: a day, in
# memory; here in the file, and failed ones for 30 days.
@jobs.define(
    name="send_email", queue="emails", timeout=30, retention=Retention(failed=timedelta(days=1))
)
@attrs.frozen
class SendEmail:
    to: str

    def run(self) -> str:
        return f"sent to {self.to}"


@define  # of a library that knows no queue
@attrs.frozen
class Report:
    def run(self) -> str:
        return "all is quiet"


jobs.register(Report)  # register_job("report", factory)

if __name__ == "__main__":
    emails = jobs.queue("emails")
    # max_attempts_: 3 runs; retry_delay_ms_ and backoff_exponential_: 5 s × 2ⁿ⁻¹; here 5 runs, the
    # same waits, spread by half. workers_: 1 for each queue; here all, until it is limited.
    emails.set(max_attempts=3, backoff=Exponential(5, jitter="none"), concurrency=1)
    with jobs.start(workers=1, node="laptop"):
        job = jobs.enqueue(SendEmail(to="you"))  # dispatch(job)
        there = jobs.enqueue(SendEmail(to="you"), node="laptop")  # dispatch(job, node_id)
        copies = jobs.broadcast(Report())  # broadcast(job): one for each node at work
        print(job.result(), there.result(), *[copy.result() for copy in copies], sep=", ")
    print(emails.settings.defaults["max_attempts"], "attempts")
