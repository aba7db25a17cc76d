"""A job that fails twice, one that no attempt would help, and one that is mended and retried:
`python examples/retries.py`. A clock that is turned makes the pauses short.
"""

from tempfile import TemporaryDirectory

from litejobs import Context, Exponential, Fail, LiteJobs, TurnedClock, define

prices = {"tea": 3}


@define(max_attempts=4, backoff=Exponential(10, jitter="none"))
def download(context: Context, page: str) -> str:
    if context.attempt < 3:
        raise ConnectionError("the server is busy")
    return f"{page}, at the attempt {context.attempt}"


@define
def buy(article: str) -> int:
    if article not in prices:
        raise Fail(f"there is no {article}")
    return prices[article]


if __name__ == "__main__":
    clock = TurnedClock()
    with TemporaryDirectory() as folder, LiteJobs(f"{folder}/jobs.db", clock=clock) as jobs:
        jobs.register(download, buy)
        page, cake = download.enqueue("page 1"), buy.enqueue("cake")
        while jobs.drain() and not page.refresh().finished:
            wait = page.run_at - clock.now
            print(f"{page.error}; again in {wait.total_seconds():.0f} s")
            clock.turn(wait)
        print(page.result())

        cake = cake.refresh()
        print(cake.state, "|", cake.error)
        prices["cake"] = 4
        print(jobs.retry(state="failed"))
        jobs.drain()
        print("the cake is", cake.refresh().result())
