"""The API as a FastAPI service: the same routes, the same checks, the same acknowledgement level."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError
from redis.asyncio import Redis

TOPIC = os.environ["KAFKA_TOPIC"]
PREFIX = os.environ.get("REDIS_KEY_PREFIX", "ua:")
EXPORT_STEP = 1000


class NewEvent(BaseModel):
    """A request's body."""

    userId: Annotated[str, StringConstraints(strip_whitespace=False, min_length=1, max_length=256)]
    eventType: Literal["LOGIN", "LOGOUT", "PRODUCT_VIEW"]
    payload: dict[str, Any] = {}


NEW_EVENT = TypeAdapter(NewEvent)


class Publisher:
    """A librdkafka producer; a thread of its own serves its delivery reports."""

    def __init__(self) -> None:
        self._producer = Producer({
            "bootstrap.servers": os.environ["KAFKA_BROKERS"],
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": float(os.environ.get("KAFKA_LINGER_MS", "0")),
            "partitioner": "murmur2_random",
        })
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while self._running:
            self._producer.poll(0.1)

    def publish(self, user_id: str, value: bytes) -> asyncio.Future[None]:
        """Hands over one record; the future ends with the acknowledgement of all in-sync replicas."""
        future = self._loop.create_future()

        def delivered(error: KafkaError | None, _: Message) -> None:
            self._loop.call_soon_threadsafe(settle, future, error)

        self._producer.produce(TOPIC, value, user_id, on_delivery=delivered)
        return future

    def close(self) -> None:
        """Waits for what is in flight."""
        self._producer.flush(5)
        self._running = False
        self._thread.join()


def settle(future: asyncio.Future[None], error: KafkaError | None) -> None:
    """Ends a future, unless its request has gone."""
    if future.cancelled():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(KafkaException(error))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens and closes the clients."""
    app.state.publisher = Publisher()
    app.state.redis = Redis.from_url(os.environ["REDIS_URL"])
    yield
    app.state.publisher.close()
    await app.state.redis.aclose()


app = FastAPI(lifespan=lifespan, openapi_url=None)


def make(event: NewEvent) -> dict[str, Any]:
    """The event as it is published."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "eventId": str(uuid4()),
        "userId": event.userId,
        "eventType": event.eventType,
        "timestamp": now,
        "payload": event.payload,
    }


def json_response(content: object, status: int = 200) -> Response:
    """JSON by orjson, which is faster than the framework's own."""
    return Response(orjson.dumps(content), status, media_type="application/json")


@app.post("/events/generate")
async def generate(request: Request) -> Response:
    """One event."""
    try:
        new = NEW_EVENT.validate_json(await request.body())
    except ValidationError as error:
        errors = [one["msg"] for one in error.errors()]
        return json_response({"success": False, "message": "Invalid request payload", "errors": errors}, 400)
    event = make(new)
    await app.state.publisher.publish(new.userId, orjson.dumps(event))
    reply = {"success": True, "message": "Event published successfully", "eventId": event["eventId"], "event": event}
    return json_response(reply, 201)


@app.post("/events/batch")
async def batch(request: Request) -> Response:
    """Many events, with one result each."""
    results: list[dict[str, Any]] = []
    deliveries = []
    for index, item in enumerate(orjson.loads(await request.body())):
        try:
            new = NEW_EVENT.validate_python(item)
        except ValidationError as error:
            results.append({"index": index, "status": 400, "errors": [one["msg"] for one in error.errors()]})
            continue
        event = make(new)
        deliveries.append(app.state.publisher.publish(new.userId, orjson.dumps(event)))
        results.append({"index": index, "status": 201, "eventId": event["eventId"]})
    await asyncio.gather(*deliveries)
    return json_response(
        {"accepted": len(deliveries), "rejected": len(results) - len(deliveries), "results": results}
    )


async def bodies(ids: list[bytes]) -> list[bytes]:
    """The bodies of these ids, without what follows their JSON."""
    if not ids:
        return []
    found = await app.state.redis.mget([f"{PREFIX}ev:".encode() + one for one in ids])
    return [body.split(b"\0", 1)[0] for body in found if body is not None]


async def export(index: str, newest_first: bool) -> AsyncIterator[bytes]:
    """All of an index, as the parts of one JSON array."""
    yield b"["
    start = 0
    while ids := await app.state.redis.zrange(index, start, start + EXPORT_STEP - 1, desc=newest_first):
        yield (b"," if start else b"") + b",".join(await bodies(ids))
        start += EXPORT_STEP
    yield b"]"


@app.get("/events/processed")
async def processed(limit: int | None = None, order: str = "asc", userId: str | None = None) -> Response:
    """A page, or everything."""
    index = f"{PREFIX}ux:{userId}" if userId else f"{PREFIX}ix"
    if limit is None:
        return StreamingResponse(export(index, order == "desc"), media_type="application/json")
    ids = await app.state.redis.zrange(index, 0, limit - 1, desc=order == "desc")
    return Response(b"[" + b",".join(await bodies(ids)) + b"]", media_type="application/json")


@app.get("/events/{event_id}")
async def one(event_id: str) -> Response:
    """One event."""
    found = await bodies([event_id.encode()])
    return Response(found[0], media_type="application/json") if found else json_response({"success": False}, 404)
