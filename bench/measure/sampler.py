"""Posts an event, then asks for it until it is there: how long an event takes to become visible, as a client sees it.

usage: python -m measure.sampler URL SECONDS PER_SECOND. Prints a JSON array of milliseconds. It runs as a process of its
own, beside the load, so that the run's other work does not delay it.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

from .events import compact, request

THREADS = 8
POLL_SECONDS = 0.001
DEADLINE_SECONDS = 30.0
HEADERS = {"Content-Type": "application/json"}


def sample(connection: http.client.HTTPConnection, nth: int) -> float:
    """Milliseconds from sending one event to the first reply that has it."""
    start = time.perf_counter()
    connection.request("POST", "/events/generate", compact(request(nth)), HEADERS)
    reply = connection.getresponse()
    body = json.loads(reply.read())
    if reply.status != 201:
        raise SystemExit(f"POST answered {reply.status}")
    while time.perf_counter() - start < DEADLINE_SECONDS:
        connection.request("GET", f"/events/{body['eventId']}")
        reply = connection.getresponse()
        reply.read()
        if reply.status == 200:
            return (time.perf_counter() - start) * 1000
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"an event was not visible within {DEADLINE_SECONDS:g} s")


def series(host: str, thread: int, seconds: float, per_second: float, found: list[float], failed: list[str]) -> None:
    """One thread's samples; starts that are due meanwhile are made up for."""
    connection = http.client.HTTPConnection(host, timeout=DEADLINE_SECONDS)
    pause, start = THREADS / per_second, time.perf_counter()
    due = start + pause * thread / THREADS
    nth = thread
    try:
        while due < start + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            found.append(sample(connection, nth))
            due, nth = due + pause, nth + THREADS
    except (SystemExit, OSError, http.client.HTTPException) as error:
        failed.append(str(error))


def main() -> None:
    """All threads, then the array."""
    url, seconds, per_second = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    found: list[float] = []
    failed: list[str] = []
    threads = [
        threading.Thread(target=series, args=(urlsplit(url).netloc, nth, seconds, per_second, found, failed))
        for nth in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(failed[0])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
