"""Progress, cancellation, and a bar in the terminal: `python examples/progress.py`."""

import time
from tempfile import TemporaryDirectory

from litejobs import Context, JobFailedError, LiteJobs, define


@define
def convert(context: Context, film: str, frames: int) -> str:
    for _ in context.track(range(frames), note=film):  # Also sees that it has to end.
        context.checkpoint()
        time.sleep(0.01)
    return f"{film} has {frames} frames"


if __name__ == "__main__":
    with TemporaryDirectory() as folder, LiteJobs(f"{folder}/jobs.db") as jobs:
        jobs.register(convert)
        with jobs.start(workers=2):
            short = [convert.enqueue(f"film {n}", 50) for n in (1, 2)]
            jobs.wait_all(short, bar=True)
            for job in short:
                print(job.result())
            endless = convert.enqueue("the endless one", 10**6)
            while not endless.refresh().progress:
                time.sleep(0.01)
            jobs.cancel(endless)
            try:
                endless.result(timeout=10)
            except JobFailedError as error:
                print(error)
