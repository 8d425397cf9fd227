"""What is sent: requests for the API, and records as the API would have published them."""

import calendar
import json
import time
from pathlib import Path

USERS = 20_000
TYPES = ("LOGIN", "LOGOUT", "PRODUCT_VIEW")
# Bytes of an event as it is published, the size that README and DESIGN speak of.
USUAL_SIZE = 191
# What the service adds to a request: eventId and timestamp, with their names.
ADDED = 88
# A prime: successive events are those of users far apart.
STRIDE = 7919


def request(nth: int, size: int = USUAL_SIZE) -> dict[str, object]:
    """The nth request's body, for an event of about `size` bytes."""
    event: dict[str, object] = {
        "userId": f"user-{nth * STRIDE % USERS:05d}",
        "eventType": TYPES[nth % len(TYPES)],
        "payload": {"page": f"/p/{nth % 1_000_000:06d}"},
    }
    missing = size - ADDED - len(compact(event)) - len(',"note":""')
    event["payload"] = {"page": f"/p/{nth % 1_000_000:06d}", "note": "x" * max(missing, 0)}
    return event


def compact(value: object) -> str:
    """JSON without blanks."""
    return json.dumps(value, separators=(",", ":"))


def write_requests(path: Path, size: int = USUAL_SIZE, batch: int = 0) -> Path:
    """A file with one request's body a line: single events, or arrays of `batch` of them."""
    lines = (20_000 if size < 1000 else 4000) if batch == 0 else max(1, 20_000 // batch)
    with path.open("w") as file:
        for line in range(lines):
            body = request(line, size) if batch == 0 else [request(line * batch + nth, size) for nth in range(batch)]
            file.write(compact(body) + "\n")
    return path


def record(nth: int, count: int, size: int) -> tuple[str, str]:
    """Key and value of the nth of `count` records; the last one is dated now, the others each a millisecond earlier."""
    event = request(nth, size)
    millis = BASE_MS - count + nth
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000)) + f".{millis % 1000:03d}Z"
    whole = {
        "eventId": uuid7(millis, nth),
        "userId": event["userId"],
        "eventType": event["eventType"],
        "timestamp": stamp,
        "payload": event["payload"],
    }
    return str(event["userId"]), compact(whole)


BASE_MS = int(time.time() * 1000)


def uuid7(millis: int, nth: int) -> str:
    """A UUID of version 7 (RFC 9562) that is distinct for each `nth`."""
    return f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-7{nth & 0xFFF:03x}-8000-{nth:012x}"


def origin_of(body: bytes) -> tuple[int, int]:
    """Of a stored body: when the event was made and when a worker took it up, in milliseconds."""
    value, _, origin = body.partition(b"\0")
    # What is stored leaves the first member out, which is the id; the peers store whole events.
    stamp = json.loads(value if value.startswith(b"{") else b"{" + value)["timestamp"]
    seconds, _, millis = stamp.rstrip("Z").partition(".")
    made = int(calendar_seconds(seconds)) * 1000 + int((millis + "000")[:3])
    return made, int(origin.split(b" ", 1)[0])


_seconds: dict[str, int] = {}


def calendar_seconds(text: str) -> int:
    """Seconds since 1970 of a UTC time; few distinct ones occur, so they are remembered."""
    found = _seconds.get(text)
    if found is None:
        found = _seconds[text] = calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return found
