"""What schemathesis does not know by itself: how NDJSON is sent."""

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_context: object, value: object) -> bytes:
    """The text as it is, whatever it holds."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
