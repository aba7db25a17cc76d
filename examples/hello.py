"""The smallest program: `python examples/hello.py`. It leaves its queue in hello.db."""

from litejobs import LiteJobs

jobs = LiteJobs("hello.db")


@jobs.define
def greet(name: str) -> str:
    return f"hello {name}"


if __name__ == "__main__":
    job = greet.enqueue("world")
    jobs.work(workers=1, until="empty")
    print(job.result())
