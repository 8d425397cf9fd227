"""What is compared, and how each is built and started. Their settings are in bench/peers/, next to their sources."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .processes import Failed, run
from .servers import cores

Build = Callable[["Paths"], list[str]]


@dataclass(frozen=True)
class Paths:
    """Where things are: the repository, the folder that is not in git, and cargo's binaries."""

    root: Path
    data: Path
    binaries: Path

    def peer(self, name: str) -> Path:
        """A peer's sources."""
        return self.root / "bench" / "peers" / name


@dataclass(frozen=True)
class Contestant:
    """A program. `build` makes it ready to start and gives its command; Failed says why it can't."""

    key: str
    title: str
    settings: str
    build: Build
    env: Mapping[str, str] = field(default_factory=dict)
    reads: bool = True
    batches: bool = True


def ours(name: str) -> Build:
    """A binary of this repository, which scripts/bench has built."""

    def build(paths: Paths) -> list[str]:
        if not (paths.binaries / name).exists():
            raise Failed(f"{name} is not built")
        return [str(paths.binaries / name)]

    return build


def node(folder: str, script: str) -> Build:
    """A Node.js program, its packages as its lock file says."""

    def build(paths: Paths) -> list[str]:
        copy = copied(paths, folder)
        once(copy, lambda: run(["npm", "ci", "--omit=dev", "--no-audit", "--no-fund"], cwd=copy))
        return ["node", str(copy / script)]

    return build


def python(folder: str, *arguments: str) -> Build:
    """A Python program in a virtual environment of its own, its packages as its requirements.txt says."""

    def build(paths: Paths) -> list[str]:
        copy = copied(paths, folder)
        programs = copy / "venv" / "bin"

        def install() -> None:
            run([sys.executable, "-m", "venv", str(copy / "venv")])
            run([str(programs / "pip"), "install", "--quiet", "-r", str(copy / "requirements.txt")])

        once(copy, install)
        return ["env", "-C", str(copy), str(programs / "python"), *arguments]

    return build


def go(folder: str) -> Build:
    """A Go program, its modules as its go.sum says."""

    def build(paths: Paths) -> list[str]:
        copy = copied(paths, folder)
        once(copy, lambda: run(["go", "build", "-trimpath", "-o", "program", "."], cwd=copy))
        return [str(copy / "program"), "-c", str(copy / "config.yaml")]

    return build


def copied(paths: Paths, folder: str) -> Path:
    """The peer's folder in the data folder, as new as its sources, so that nothing is built inside the repository."""
    copy = paths.data / "peers" / folder
    shutil.copytree(paths.peer(folder), copy, dirs_exist_ok=True)
    return copy


# What decides whether a peer must be built anew.
MANIFESTS = ("package-lock.json", "requirements.txt", "go.sum", "main.go")


def once(folder: Path, build: Callable[[], object]) -> None:
    """Builds unless that was done for the same manifests."""
    found = [folder / name for name in MANIFESTS if (folder / name).exists()]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()
    stamp = folder / "built"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    build()
    stamp.write_text(wanted)


PROCESSES = str(cores())

API = Contestant(
    "api", "user-activity-api", "defaults: acks=all, idempotent; linger 0, group commit",
    ours("user-activity-api"),
)

CEILING = Contestant(
    "without-kafka", "the same handler without Kafka", "acknowledges nothing: the ceiling",
    ours("examples/without_kafka"), reads=False, batches=False,
)

EXPRESS = Contestant(
    "express", "Express + KafkaJS", "acks=all, one producer, one process, as the service that is replaced; not idempotent",
    node("express-kafkajs", "service.js"), {"NODE_ENV": "production", "PROCESSES": "1"},
)

# Faster with many connections, slower with few: so both are shown.
EXPRESS_CLUSTER = Contestant(
    "express-cluster", "Express + KafkaJS, clustered", f"the same with node:cluster, {PROCESSES} processes with a producer each",
    node("express-kafkajs", "service.js"), {"NODE_ENV": "production", "PROCESSES": PROCESSES}, reads=False,
)

FASTAPI = Contestant(
    "fastapi", "FastAPI + confluent-kafka",
    f"acks=all, idempotent, linger 0; uvicorn with uvloop and httptools, {PROCESSES} workers",
    python("fastapi-confluent", "-m", "uvicorn", "service:app", "--loop", "uvloop", "--http", "httptools",
           "--workers", PROCESSES, "--no-access-log", "--log-level", "warning"),
)  # fmt: skip

BENTHOS = Contestant(
    "benthos", "Benthos http_server → kafka_franz", "acks=all, idempotent, max_in_flight 1024, linger 0",
    go("benthos-franz"), reads=False,
)

KAFKA_RUST = Contestant(
    "kafka-rust", "user-activity-api, kafka-rust", "KAFKA_CLIENT=kafka-rust: acks=all, not idempotent, sent again only where no leader has taken it",
    ours("user-activity-api"), {"KAFKA_CLIENT": "kafka-rust"},
)  # fmt: skip

API_QUIET = Contestant(
    "api-quiet", "user-activity-api, unobserved", "LOG_LEVEL=off, nobody asks for its metrics or its health",
    ours("user-activity-api"), {"LOG_LEVEL": "off"},
)

WORKER = Contestant(
    "worker", "user-activity-worker", "defaults: transactions of up to 500 events, of up to 4,000 where it lags behind; positions stored with the data",
    ours("user-activity-worker"), {"ADMIN_PORT": "0"},
)

KAFKAJS = Contestant(
    "kafkajs", "KafkaJS + ioredis", "six partitions at a time, pipelines of up to 500 events, offsets committed afterwards",
    node("kafkajs-ioredis", "worker.js"), {"NODE_ENV": "production"},
)

CONFLUENT = Contestant(
    "confluent", "confluent-kafka + redis-py", "pipelines of up to 500 events, hiredis, offsets committed afterwards",
    python("confluent-redis", "worker.py"),
)

SERVICES = [API, CEILING, EXPRESS, EXPRESS_CLUSTER, FASTAPI, BENTHOS]
WORKERS = [WORKER, KAFKAJS, CONFLUENT]
CONTESTANTS = [*SERVICES, KAFKA_RUST, API_QUIET, *WORKERS]
# The whole way, from the POST to the list: who accepts and who records.
SYSTEMS = [(API, WORKER), (EXPRESS, KAFKAJS), (FASTAPI, CONFLUENT)]


class Commands:
    """The commands of those contestants that could be built; the others are named with the reason."""

    def __init__(self, paths: Paths, say: Callable[[str], None]) -> None:
        self._paths, self._say = paths, say
        self._built: dict[str, list[str]] = {}
        self.missing: dict[str, str] = {}

    def of(self, one: Contestant) -> list[str] | None:
        """Its command, or None."""
        if one.key not in self._built and one.key not in self.missing:
            self._say(f"preparing {one.title}")
            try:
                self._built[one.key] = one.build(self._paths)
            except (Failed, OSError) as error:
                self._say(f"{one.title} is left out: {error}")
                self.missing[one.key] = str(error)
        return self._built.get(one.key)


def port_variable(one: Contestant, port: int) -> dict[str, str]:
    """How a service is told its port; uvicorn has a name of its own for it."""
    return {"PORT": str(port), "UVICORN_PORT": str(port), "BIND_ADDRESS": "127.0.0.1"} if one not in WORKERS else {}


def quiet_environment() -> None:
    """Settings of the caller's shell must not reach any contestant."""
    for name in list(os.environ):
        if name.startswith(("KAFKA_", "REDIS_", "HTTP_", "DEAD_LETTER_", "LOG_")) or name in {"RUST_LOG", "USER_INDEX"}:
            del os.environ[name]
