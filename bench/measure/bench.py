"""What every scenario works with: starting contestants, rounds, keeping figures."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis
from confluent_kafka import KafkaException

from .contestants import API, Commands, Contestant, Paths, port_variable
from .events import USUAL_SIZE, compact, request, write_requests
from .load import closed_loop
from .processes import Failed, Process, Processes, free_port, wait_until
from .results import Record, Results
from .servers import Servers

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How long and how often."""

    rounds: int
    seconds: float
    warm_up: float
    events: int
    broker_warm_up: float


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    url: str
    process: Process


class Bench:
    """One run."""

    def __init__(
        self, paths: Paths, servers: Servers, processes: Processes, commands: Commands, options: Options,
        results: Results, output: Path, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.paths, self.servers, self.processes = paths, servers, processes
        self.commands, self.options, self.say = commands, options, say
        self._results, self._output = results, output

    @contextmanager
    def beside(self, version: str) -> Iterator["Bench"]:
        """The same run with servers of its own, Kafka in this version; the usual ones idle meanwhile."""
        with Processes(self.processes.folder) as processes:
            servers = Servers(processes, self.paths.root, version)
            servers.await_ready()
            yield Bench(self.paths, servers, processes, self.commands, self.options, self._results, self._output, self.say)

    def warm_broker(self) -> None:
        """The broker compiles itself while it works: its first seconds say nothing of the later ones."""
        self.say("warming up the broker")
        with self.servers.topic() as topic, self.service(API, topic, warm=False) as service:
            closed_loop(f"{service.url}/events/generate", 64, self.options.broker_warm_up, self.bodies())

    def rounds(self, contestants: Sequence[T], times: int = 1) -> Iterator[tuple[int, T]]:
        """Each round has all contestants, each time beginning with another one; `times` as many rounds as usual."""
        for nth in range(times * self.options.rounds):
            turn = nth % len(contestants)
            for one in [*contestants[turn:], *contestants[:turn]]:
                yield nth + 1, one

    def measure(
        self, scenario: str, contestant: str, nth: int, params: Mapping[str, Any],
        measurement: Callable[..., Mapping[str, float]], *arguments: object,
    ) -> Mapping[str, float]:  # fmt: skip
        """Makes one measurement and keeps its figures, or why there are none."""
        figures: Mapping[str, float] = {}
        with collected() as failure:
            figures = measurement(*arguments)
        self.keep(Record(scenario, contestant, nth, dict(params), dict(figures), failure.text))
        return figures

    def attempt(self, scenario: str, contestant: str, nth: int, steps: Callable[..., None], *arguments: object) -> None:
        """Runs the steps of several measurements; what keeps them from being made is kept as their figure."""
        with collected() as failure:
            steps(*arguments)
        if failure.text is not None:
            self.keep(Record(scenario, contestant, nth, {}, {}, failure.text))

    def keep(self, record: Record) -> None:
        """Adds a record, on disk as well."""
        self._results.records.append(record)
        self._results.write(self._output)
        shown = record.error or ", ".join(f"{name} {value:,.1f}" for name, value in record.figures.items())
        params = " ".join(f"{name}={value}" for name, value in record.params.items())
        self.say(f"[{record.scenario} {record.round}] {record.contestant} {params}: {shown}")

    def bodies(self, size: int = USUAL_SIZE, batch: int = 0) -> Path:
        """A file of requests."""
        path = self.processes.folder / f"requests-{size}-{batch}"
        return path if path.exists() else write_requests(path, size, batch)

    def environment(self, topic: str) -> dict[str, str]:
        """What every contestant is told."""
        return {
            "KAFKA_BROKERS": self.servers.brokers,
            "KAFKA_TOPIC": topic,
            "KAFKA_DLQ_TOPIC": f"{topic}-dlq",
            "REDIS_URL": self.servers.redis_url,
        }

    def present(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Those that could be built."""
        return [one for one in contestants if self.commands.of(one) is not None]

    @contextmanager
    def service(self, one: Contestant, topic: str, warm: bool = True) -> Iterator[Running]:
        """A service that has answered a POST with success, warmed up unless `warm` is False."""
        port = free_port()
        env = {**self.environment(topic), **one.env, **port_variable(one, port)}
        url = f"http://127.0.0.1:{port}"
        with self.processes.running(one.key, self.commands.of(one) or [], env) as process:
            wait_until(one.title, 60, lambda: process.must_live() and posts(url), 0.2)
            if warm:
                closed_loop(f"{url}/events/generate", 64, self.options.warm_up, self.bodies())
            yield Running(url, process)

    @contextmanager
    def workers(self, one: Contestant, topic: str, group: str, count: int = 1, index: bool = True) -> Iterator[list[Process]]:
        """So many workers of a group; they may not be ready yet."""
        env = {**self.environment(topic), **one.env, "KAFKA_CONSUMER_GROUP": group, "USER_INDEX": "on" if index else "off"}
        started: list[Process] = []
        try:
            for nth in range(count):
                name = f"{one.key}-{nth}"
                log = self.processes.folder / f"{name}.log"
                started.append(Process(name, self.commands.of(one) or [], {**os.environ, **env}, log))
            yield started
        finally:
            for process in started:
                process.stop()


class Collected:
    """Why a block ended early, None when it did not."""

    text: str | None = None


@contextmanager
def collected() -> Iterator[Collected]:
    """Turns failures that say something about what is measured into text."""
    failure = Collected()
    try:
        yield failure
    except (Failed, OSError, ValueError, KeyError, http.client.HTTPException, KafkaException, redis.RedisError) as error:
        failure.text = f"{error}" if isinstance(error, Failed) else f"{type(error).__name__}: {error}"


def posts(url: str) -> bool:
    """A POST of an event succeeds."""
    return status_of(f"{url}/events/generate", compact(request(0))) == 201


def status_of(url: str, body: str) -> int:
    """The status of a POST, 0 when there was no answer."""
    asked = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=10) as reply:
            json.load(reply)
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException):
        return 0


def milliseconds() -> int:
    """Now, since 1970."""
    return time.time_ns() // 1_000_000
