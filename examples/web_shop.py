"""An order and its job in one transaction of sqlite3: `python examples/web_shop.py`.

The shop enqueues on its own connection; a second process does the work. Prints what that did:
the order for a cake was taken back, and no job is left of it.
"""

import sqlite3
import subprocess
import sys
from tempfile import TemporaryDirectory

from litejobs import LiteJobs, define


@define
def confirm(order: int, article: str) -> None:
    print(f"order {order} is confirmed: {article}", flush=True)


def sell(connection: sqlite3.Connection, article: str) -> None:
    cursor = connection.execute("INSERT INTO orders (article) VALUES (?)", [article])
    confirm.using(connection=connection).enqueue(cursor.lastrowid or 0, article)
    connection.commit() if article != "cake" else connection.rollback()


def shop(file: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, article TEXT)")
    for article in ("tea", "cake", "milk"):
        sell(connection, article)
    connection.close()
    subprocess.run([sys.executable, __file__, file], check=True)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        jobs = LiteJobs(sys.argv[1] if sys.argv[1:] else f"{folder}/shop.db")
        jobs.register(confirm)
        if sys.argv[1:]:  # This is the second process.
            jobs.work(workers=1, until="empty")
        else:
            shop(str(jobs.path))
