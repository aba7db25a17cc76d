"""Sixty slow pages at a time, in one worker: `python examples/fetch_pages.py`.

The server here sends ten lines a second, and falls silent in the middle of page 13. Prints how
far that page had come at its timeout, and how many others were there by then.
"""

import asyncio
from tempfile import TemporaryDirectory

from litejobs import Context, LiteJobs, define


@define(timeout=4, max_attempts=1)
async def fetch(context: Context, port: int, page: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"%d\n" % page)
        for line in range(10):
            context.progress(line, 10, "lines")
            await reader.readline()
    finally:  # At the timeout, too: the task is cancelled.
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    page = int(await reader.readline())
    for _ in range(5 if page == 13 else 10):
        await asyncio.sleep(0.1)
        writer.write(b"a line\n")
    await reader.read()  # Until the other end hangs up.


async def main(file: str) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    with LiteJobs(file) as jobs:
        jobs.register(fetch)
        with jobs.start(workers=1):
            done = await asyncio.gather(*jobs.enqueue_many(fetch.bind(port, n) for n in range(60)))
    print(f"page 13, {done[13].progress}: {done[13].error}")
    print(sum(page.state == "completed" for page in done), "others were fetched meanwhile")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        asyncio.run(main(f"{folder}/jobs.db"))
