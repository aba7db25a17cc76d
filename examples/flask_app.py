"""A web program with Flask: `flask --app examples/flask_app.py run`, and beside it
`litejobs run examples/flask_app.py:jobs`.

`python examples/flask_app.py` shows both at once: it asks the program as a browser would, with two
workers beside it.
"""

import flask

from litejobs import JobNotFoundError, LiteJobs

app = flask.Flask(__name__)
jobs = LiteJobs("flask.db")


@jobs.define(queue="pictures")
def resize(picture: str, width: int) -> str:
    return f"{picture} is {width} pixels wide"


@app.post("/pictures/<name>")
def upload(name: str) -> flask.typing.ResponseReturnValue:
    job = resize.enqueue(name, width=800)
    return {"job": job.id}, 202


@app.get("/jobs/<int:id>")
def look(id: int) -> flask.typing.ResponseReturnValue:
    try:
        job = jobs.get(id)
    except JobNotFoundError:
        flask.abort(404)
    return {"state": job.state, "result": job.result() if job.state == "completed" else None}


if __name__ == "__main__":
    browser = app.test_client()
    with jobs.start(workers=2):
        answer = browser.post("/pictures/cat.png")
        print(answer.status_code)
        jobs.get(answer.json["job"]).wait(timeout=30)
    print(browser.get(f"/jobs/{answer.json['job']}").json)
