"""One job however often one clicks, the last value only, and many in one:
`python examples/unique.py`.
"""

from tempfile import TemporaryDirectory
from typing import Any

from litejobs import LiteJobs, Unique, define


@define(unique=Unique(["account"], scope="active"))  # No second one while it waits or runs.
def import_bookings(account: str, clicks: int) -> str:
    return f"{account}, click {clicks}"


@define(unique=Unique(["document"], on_conflict="replace"))  # Only the last text is saved.
def save(document: str, text: str) -> str:
    return text


def together(waiting: Any, new: Any) -> dict[str, Any]:
    return {"pages": [*waiting["pages"], *new["pages"]]}


@define(unique=Unique(fields=(), on_conflict=together))  # One job for all pages.
def index(pages: list[int]) -> str:
    return f"pages {pages} at once"


if __name__ == "__main__":
    with TemporaryDirectory() as folder, LiteJobs(f"{folder}/jobs.db") as jobs:
        jobs.register(import_bookings, save, index)
        for n in (1, 2, 3):
            job = import_bookings.enqueue("savings", n)
            print(f"click {n}: job {job.id}", "(is there already)" if job.duplicate else "")
            save.using(delay=0.2).enqueue("letter", text="Dear all"[: 3 * n])
            index.enqueue([n])
        jobs.work(workers=1, until="empty")
        while jobs.count(state="scheduled"):
            jobs.drain()
        for job in reversed(jobs.find()):
            print(job.name, "ran once:", job.result())
