"""SNS's notifications to Django's view behind gunicorn's sync workers, each of which answers one request at a time."""

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import psutil
import pytest

import processes
import senders
from mailglass_reconcile.providers import samples
from processes import Process
from receivers import now
from senders import CERTIFICATE_URL, Posted
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

LISTENING = re.compile(r"Listening at: (http://\S+)")
WORKERS = 6
ATTEMPTS = 4
"""SNS's first attempt and its repetitions."""
EVENTS = "SELECT count(*) FROM mailglass_events"


@contextmanager
def gunicorn(db, folder: Path, workers: int, *certificate_urls: str) -> Iterator[tuple[Process, str]]:
    """Run the site with some sync workers, beside a server that has the certificates."""
    certificates = {url: senders.serve_certificate(CERTIFICATE_URL).decode() for url in certificate_urls}
    (folder / "certificates").write_text(json.dumps(certificates))
    environment = {
        **db.environment(),
        "MAILGLASS_WEBHOOK_SECRETS": f"ses={senders.ARN}",
        "PYTHONPATH": str(Path(processes.__file__).parent),
        "TEST_CERTIFICATES": str(folder / "certificates"),
    }
    command = ["-m", "gunicorn", "--preload", "--workers", str(workers), "--bind", "127.0.0.1:0", "gunicorn_site"]
    with processes.start(command, environment, until=LISTENING, forked=False) as process:
        wait_until(lambda: len(children(process)) == workers)
        yield process, process.wait_for(LISTENING)[1]


def children(process: Process) -> list[int]:
    """Return the ids of the workers."""
    return [child.pid for child in psutil.Process(process.pid).children()]


def notification(number: int, certificate_url: str) -> Posted:
    """Return a notification of one delivery; the URL of its certificate is not signed."""
    event = samples.make_sample("ses", "delivered", f"m-{number}", None, now())
    request = senders.notification("ses", {"Type": "Notification", "Message": json.dumps(event)})
    return request._replace(body=request.body.replace(CERTIFICATE_URL.encode(), certificate_url.encode()))


def test_each_new_worker_records_its_first_notification_at_the_first_attempt(db, tmp_path):
    """It has no certificate yet, and waits for it. Four attempts once lost some."""
    with gunicorn(db, tmp_path, WORKERS, CERTIFICATE_URL) as (process, address):

        def post(number: int) -> int:
            request = notification(number, CERTIFICATE_URL)
            url = f"{address}/webhooks/ses"
            return httpx.post(url, content=request.body, headers=request.headers, timeout=PATIENCE).status_code

        with ThreadPoolExecutor(WORKERS) as pool:  # a fetch takes half a second, so each worker gets one
            statuses = list(pool.map(post, range(WORKERS)))
        assert statuses == [200] * WORKERS, process.output
        assert db.value(EVENTS) == WORKERS


@pytest.mark.nightly
def test_strangers_leave_the_other_pages_of_a_site_their_workers(db, tmp_path):
    """They name four certificates a second that Amazon's server does not answer: each could cost a worker two seconds.

    Meanwhile SNS delivers a notification, if not at once then by repeating it.
    """
    honest = notification(0, CERTIFICATE_URL)
    numbers, answers, ended = count(), Counter(), threading.Event()
    with gunicorn(db, tmp_path, 2, CERTIFICATE_URL) as (_, address):

        def visit() -> None:
            with httpx.Client() as client:
                while not ended.is_set():
                    answers["page", client.get(f"{address}/page", timeout=PATIENCE).status_code] += 1

        def attack() -> None:
            with httpx.Client() as client:
                while not ended.is_set():
                    name = f"-{os.getpid():08x}{next(numbers):024x}".encode()
                    body = re.sub(rb"-[0-9a-f]{32}(?=\.pem)", name, honest.body)
                    response = client.post(
                        f"{address}/webhooks/ses", content=body, headers=honest.headers, timeout=PATIENCE
                    )
                    answers["webhook", response.status_code] += 1
                    ended.wait(0.5)

        def notify() -> None:
            """Post a notification until it is recorded, as SNS does, which waits for longer."""
            ended.wait(5)
            statuses = []
            while not ended.is_set() and 200 not in statuses:
                answer = httpx.post(f"{address}/webhooks/ses", content=honest.body, headers=honest.headers, timeout=30)
                statuses.append(answer.status_code)
                ended.wait(5)
            answers["notification", statuses[-1]] += 1
            assert len(statuses) <= ATTEMPTS, statuses

        def measure(seconds: float, *clients) -> float:
            """Return the pages per second."""
            answers.clear()
            ended.clear()
            with ThreadPoolExecutor(len(clients)) as pool:
                tasks = [pool.submit(client) for client in clients]
                time.sleep(seconds)  # the time of the measurement
                pages = answers["page", 200]
                ended.set()
            for task in tasks:
                task.result()
            return pages / seconds

        alone = measure(5, *[visit] * 4)
        beside_strangers = measure(45, *[visit] * 4, *[attack] * 2, notify)
        assert set(answers) == {("page", 200), ("webhook", 503), ("notification", 200)}
        assert beside_strangers > 0.8 * alone, (alone, beside_strangers, answers)
