"""The broker and the Redis of a run: its own, on free ports, with their data in the run's folder."""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from .events import record
from .processes import Failed, Processes, free_port, wait_until

KAFKA_VERSION = "4.3.1"
# The last line that the crate `kafka` can talk to.
KAFKA_3_VERSION = "3.9.1"
PARTITIONS = 6


class Servers:
    """Kafka and Redis, started by the scripts that start them everywhere else in this repository."""

    def __init__(self, processes: Processes, root: Path, version: str = KAFKA_VERSION) -> None:
        kafka_port, redis_port = free_port(), free_port()
        while abs(kafka_port - redis_port) < 2:
            redis_port = free_port()
        scripts, data = root / "scripts" / "lib", processes.folder
        self.brokers = f"127.0.0.1:{kafka_port}"
        self.redis_url = f"redis://127.0.0.1:{redis_port}"
        # Servers of a scenario run beside those of the run: names with the port are distinct.
        kafka, redis_name = f"kafka-{kafka_port}", f"redis-{redis_port}"
        broker = [str(scripts / "kafka-broker"), version, str(kafka_port), str(data / kafka)]
        self._kafka = processes.start(kafka, broker, {})
        store = [str(scripts / "redis-server"), str(redis_port), str(data / redis_name)]
        self._redis = processes.start(redis_name, store, {})
        self.redis = redis.Redis.from_url(self.redis_url)
        self.admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
        self._names = itertools.count()
        self._run = f"{random.randrange(16**4):04x}"

    def await_ready(self) -> None:
        """Until both answer; the first start of a machine fetches Kafka."""
        wait_until("Redis", 60, lambda: self._redis.must_live() and answers(self.redis.ping))
        wait_until("Kafka", 300, lambda: self._kafka.must_live() and answers(lambda: self.admin.list_topics(timeout=2)))

    def stop_kafka(self) -> None:
        """For good: only for servers that nobody else uses."""
        self._kafka.stop()

    @contextmanager
    def topic(self, partitions: int = PARTITIONS) -> Iterator[str]:
        """A topic of its own, deleted afterwards. Its dead-letter topic comes with it."""
        name = f"bench-{self._run}-{next(self._names)}"
        names = [name, f"{name}-dlq"]
        # The broker keeps the files of a deleted topic for a minute otherwise, and the next one pays for the disk.
        topics = [NewTopic(one, partitions, 1, config={"file.delete.delay.ms": "1000"}) for one in names]
        for future in self.admin.create_topics(topics).values():
            future.result(30)
        try:
            yield name
        finally:
            for future in self.admin.delete_topics(names).values():
                with suppress(KafkaException):
                    future.result(30)

    def group(self) -> str:
        """The name of a consumer group that nobody was in."""
        return f"bench-{self._run}-{next(self._names)}"

    def fill(self, topic: str, count: int, size: int) -> None:
        """Publishes `count` events of about `size` bytes, as the API would have."""
        producer = Producer({
            "bootstrap.servers": self.brokers, "acks": "all", "enable.idempotence": True, "linger.ms": 20,
            "partitioner": "murmur2_random", "queue.buffering.max.messages": 200_000, "log_level": 0,
        })
        for nth in range(count):
            user, value = record(nth, count, size)
            while True:
                try:
                    producer.produce(topic, value, user)
                    break
                except BufferError:
                    producer.poll(0.05)
            if nth % 1000 == 0:
                producer.poll(0)
        if producer.flush(120) > 0:
            raise Failed(f"{topic} could not be filled")

    def records(self, topic: str) -> int:
        """How many records a topic has."""
        partitions = self.admin.list_topics(topic, timeout=10).topics[topic].partitions
        asked = {TopicPartition(topic, one): OffsetSpec.latest() for one in partitions}
        offsets: list[int] = [future.result(10).offset for future in self.admin.list_offsets(asked).values()]
        return sum(offsets)

    def empty_redis(self) -> None:
        """Every measurement begins with an empty store."""
        self.redis.flushall(asynchronous=False)

    def stored(self) -> int:
        """How many events are in the index of all, of whichever layout."""
        pipeline = self.redis.pipeline(transaction=False)
        for key in INDEXES:
            pipeline.zcard(key)
        return sum(pipeline.execute())

    def used_memory(self) -> int:
        """Bytes that Redis has allocated."""
        return int(self.redis.info("memory")["used_memory"])

    def redis_seconds(self) -> float:
        """CPU time of the thread that executes commands, which limits what a Redis can do."""
        used = self.redis.info("cpu")
        return float(used["used_cpu_user_main_thread"]) + float(used["used_cpu_sys_main_thread"])

    def bodies(self) -> Iterator[bytes]:
        """The bodies of all stored events: JSON, a zero byte, when and from where it was processed."""
        keys = self.redis.scan_iter(match="ua:ev:*", count=2000)
        while chunk := list(itertools.islice(keys, 2000)):
            yield from (body for body in self.redis.mget(chunk) if isinstance(body, bytes))


# Hash tags of sixteen buckets (common/src/store/layout.rs), among them that of a single one; and the index of the peers.
TAGS = ("10", "3", "1a", "b", "11", "2", "1d", "c", "12", "1", "1c", "d", "13", "0", "1b", "a")
INDEXES = [f"ua:ix:{{{tag}}}" for tag in TAGS] + ["ua:ix"]


def answers(ask: Callable[[], object]) -> bool:
    """The server is there."""
    try:
        ask()
    except (redis.RedisError, KafkaException, OSError):
        return False
    return True


def cores() -> int:
    """Processors that this run may use."""
    return len(os.sched_getaffinity(0))
