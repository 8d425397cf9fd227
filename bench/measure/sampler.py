"""Posts an event, then asks for it until it is there: how long an event takes to become visible, as a client sees it.

usage: python -m measure.sampler URL SECONDS PER_SECOND [QUERY]. QUERY goes with each request for the event: `wait=2s` makes
one request of many. Prints a JSON object of arrays of milliseconds: `visible`, and how `late` this program was each time that
it wanted to go on. It must not be what is measured: a process of one thread, above the others' priority where that is
permitted, and few events a second.
"""

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from urllib.parse import urlsplit

from .events import compact, request

NICE = -5
POLL_SECONDS = 0.001
DEADLINE_SECONDS = 30.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Observer:
    """What was found so far."""

    def __init__(self, url: str, query: str) -> None:
        self._at, self._query = urlsplit(url), f"?{query}" if query else ""
        self.visible: list[float] = []
        self.late: list[float] = []

    async def sample(self, nth: int, due: float) -> None:
        """From sending one event to the first reply that has it."""
        await self._until(due)
        connection = await asyncio.open_connection(self._at.hostname, self._at.port)
        start = time.perf_counter()
        status, reply = await self._ask(connection, "POST /events/generate", compact(request(nth)))
        if status != 201:
            raise SystemExit(f"POST answered {status}")
        event = f"GET /events/{json.loads(reply)['eventId']}{self._query}"
        while (await self._ask(connection, event))[0] != 200:
            if time.perf_counter() > start + DEADLINE_SECONDS:
                raise SystemExit(f"an event was not visible within {DEADLINE_SECONDS:g} s")
            await self._until(time.perf_counter() + POLL_SECONDS)
        self.visible.append((time.perf_counter() - start) * 1000)
        connection[1].close()

    async def _until(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        self.late.append((time.perf_counter() - due) * 1000)

    async def _ask(self, connection: Connection, what: str, body: str = "") -> tuple[int, bytes]:
        """Status and body of a reply, which must say how long it is; all contestants' do."""
        reader, writer = connection
        head = f"{what} HTTP/1.1\r\nHost: {self._at.netloc}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}\r\n{body}".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\ncontent-length: *(\d+)", answer)
        if not length:
            raise SystemExit(f"a reply without a length: {answer[:100]!r}")
        return int(answer.split(b" ", 2)[1]), await reader.readexactly(int(length[1]))


async def main(url: str, seconds: float, per_second: float, query: str = "") -> None:
    """All samples, each begun when it is due whatever became of the others."""
    observer, start = Observer(url, query), time.perf_counter()
    dues = [start + nth / per_second for nth in range(max(1, round(seconds * per_second)))]
    await asyncio.gather(*(observer.sample(nth, due) for nth, due in enumerate(dues)))
    print(json.dumps({"visible": observer.visible, "late": observer.late}))


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    try:
        asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))
    except (OSError, EOFError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
