"""A web program with FastAPI, with the workers in its lifespan:
`uvicorn --app-dir examples fastapi_app:app`.

`python examples/fastapi_app.py` starts it and asks it as a browser would. With several web
processes each has a node of its own, and each job still runs once.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fastapi

from litejobs import JobNotFoundError, LiteJobs

jobs = LiteJobs("fastapi.db")


@jobs.define(queue="pictures")
def resize(picture: str, width: int) -> str:
    return f"{picture} is {width} pixels wide"


@asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    with jobs.start(workers=2):
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/pictures/{name}", status_code=202)
async def upload(name: str) -> dict[str, int]:
    job = await resize.aenqueue(name, width=800)
    return {"job": job.id}


@app.get("/jobs/{id}")
async def look(id: int) -> dict[str, str | None]:
    try:
        job = await jobs.aget(id)
    except JobNotFoundError:
        raise fastapi.HTTPException(404) from None
    return {"state": job.state, "result": job.result() if job.state == "completed" else None}


if __name__ == "__main__":
    from fastapi.testclient import TestClient

    with TestClient(app) as browser:
        answer = browser.post("/pictures/cat.png")
        print(answer.status_code)
        while (seen := browser.get(f"/jobs/{answer.json()['job']}").json())["result"] is None:
            time.sleep(0.05)
        print(seen)
