"""Holds many slow connections, which no load generator does: each sends a request and then reads nothing.

usage: python slow_clients.py unread | drip URL CONNECTIONS SECONDS

unread: GET URL, with as small a window as the system gives. drip: POST to URL, its body a byte each 0.1 s. A connection
that is cut off is made anew. Prints, at the end, how many connections had which status by then, as JSON.
"""

import asyncio
import collections
import json
import socket
import sys
from urllib.parse import urlsplit

WINDOW = 4096
PAUSE_SECONDS = 0.1
# As long as a body may be by default: more than will ever come.
BODY = 256 * 1024
STATUS = len("HTTP/1.1 ")


async def hold(address: tuple[str, int], request: bytes, drip: bool, end: float) -> str:
    """One connection after another until the end; the status of the last one's reply, or what came instead."""
    loop = asyncio.get_running_loop()
    while loop.time() < end:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
            one.setblocking(False)
            try:
                await loop.sock_connect(one, address)
                await loop.sock_sendall(one, request)
                while (left := end - loop.time()) > 0:
                    await asyncio.sleep(min(PAUSE_SECONDS, left) if drip else left)
                    await loop.sock_sendall(one, b" " * drip)
                return one.recv(STATUS + 3)[STATUS:].decode() or "cut off"
            except BlockingIOError:
                return "nothing yet"
            except ConnectionError:
                await asyncio.sleep(PAUSE_SECONDS)
    return "cut off"


async def main(mode: str, url: str, connections: int, seconds: float) -> None:
    """All connections, then their statuses."""
    target, drip = urlsplit(url), mode == "drip"
    path = f"{target.path}?{target.query}"
    head = f"{'POST' if drip else 'GET'} {path} HTTP/1.1\r\nHost: {target.netloc}\r\n"
    body = f"Content-Type: application/json\r\nContent-Length: {BODY}\r\n" if drip else ""
    request, end = f"{head}{body}\r\n".encode(), asyncio.get_running_loop().time() + seconds
    address = (str(target.hostname), int(target.port or 80))
    found = await asyncio.gather(*(hold(address, request, drip, end) for _ in range(connections)))
    print(json.dumps(collections.Counter(found)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
