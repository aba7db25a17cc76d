"""A site with Django: `python examples/django_site.py`.

An order and its job belong together. The queue may have a file of its own: then the job is
enqueued when the transaction has committed. Or it may live in Django's own SQLite file: then both
are one transaction, and a crash between the two cannot lose the job. There Django's sqlite3 and
litejobs must not be in one process, so the node is another one: `python examples/django_site.py
work`.
"""

import subprocess
import sys

import django
from django.conf import settings
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

from litejobs import LiteJobs

if not settings.configured:
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.db"}
    settings.configure(
        ALLOWED_HOSTS=["*"], DATABASES={"default": database}, ROOT_URLCONF=__name__, SECRET_KEY="x"
    )
    django.setup()

jobs = LiteJobs("django.db")  # a file of its own
inside = LiteJobs("site.db")  # Django's own


@jobs.define
def confirm(order: int) -> None:
    print(f"order {order} is confirmed", flush=True)


@inside.define
def pack(order: int) -> None:
    print(f"order {order} is packed", flush=True)


@transaction.atomic
def sell(request: HttpRequest, article: str) -> JsonResponse:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (article) VALUES (%s)", [article])
        order = int(cursor.lastrowid)
    transaction.on_commit(lambda: confirm.enqueue(order))
    pack.using(connection=connection.connection).enqueue(order)
    if article == "cake":
        transaction.set_rollback(True)  # No order, and neither of the jobs.
        return JsonResponse({"error": "there is no cake"}, status=404)
    return JsonResponse({"order": order})


urlpatterns = [path("sell/<str:article>", sell)]


def show() -> None:
    from django.test import Client

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, article TEXT)")
    for article in ("tea", "cake", "milk"):
        print(article, Client().get(f"/sell/{article}").status_code, flush=True)
    connection.close()
    subprocess.run([sys.executable, __file__, "work"], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        for each in (jobs, inside):
            each.work(workers=1, until="empty")
    else:
        show()
