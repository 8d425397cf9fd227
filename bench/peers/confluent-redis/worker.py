"""The worker with confluent-kafka and redis-py: each batch goes to Redis as one pipeline."""

import os
import signal
import time
from datetime import datetime
from types import FrameType

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from redis import Redis
from redis.client import Pipeline

MOST_RECORDS = 500
# What a record waits for company; with a backlog the batch is full at once.
LINGER_SECONDS = 0.01
PREFIX = os.environ.get("REDIS_KEY_PREFIX", "ua:")
USER_INDEX = os.environ.get("USER_INDEX", "on") == "on"
RETENTION_MS = int(os.environ.get("RETENTION_MS", "604800000"))
WORKER = f"confluent-{os.getpid()}"


def add(pipeline: Pipeline, message: Message, index: dict[str, int]) -> None:
    """Adds the commands of one event, and its entry to the index of all."""
    value = message.value()
    event = orjson.loads(value)
    event_id = event["eventId"]
    score = int(datetime.fromisoformat(event["timestamp"]).timestamp() * 1000)
    origin = f"\0{time.time_ns() // 1_000_000} {message.partition()} {message.offset()} {WORKER}"
    pipeline.set(f"{PREFIX}ev:{event_id}", value + origin.encode(), nx=True, pxat=score + RETENTION_MS)
    index[event_id] = score
    if USER_INDEX:
        key = f"{PREFIX}ux:{event['userId']}"
        pipeline.zadd(key, {event_id: score}, nx=True)
        pipeline.pexpire(key, RETENTION_MS)


def store(redis: Redis, messages: list[Message]) -> None:
    """Records a batch; raises when any command failed."""
    pipeline = redis.pipeline(transaction=False)
    index: dict[str, int] = {}
    for message in messages:
        add(pipeline, message, index)
    pipeline.zadd(f"{PREFIX}ix", index, nx=True)
    pipeline.execute()


def events_of(messages: list[Message]) -> list[Message]:
    """Those that are records."""
    for message in messages:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
    return [message for message in messages if message.error() is None]


def consumer() -> Consumer:
    """A member of the group."""
    made = Consumer({
        "bootstrap.servers": os.environ["KAFKA_BROKERS"],
        "group.id": os.environ["KAFKA_CONSUMER_GROUP"],
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 10_000,
        # With the default of a second the consumer pauses each time its local queue is full.
        "fetch.queue.backoff.ms": 5,
        "fetch.wait.max.ms": 100,
    })
    made.subscribe([os.environ["KAFKA_TOPIC"]])
    return made


def main() -> None:
    """Consumes until SIGTERM."""
    running = True

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    redis = Redis.from_url(os.environ["REDIS_URL"])
    member = consumer()
    while running:
        messages = events_of(member.consume(MOST_RECORDS, LINGER_SECONDS))
        if messages:
            store(redis, messages)
            member.commit(asynchronous=True)
    member.close()


if __name__ == "__main__":
    main()
