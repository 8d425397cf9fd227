"""What is measured. Each scenario is a function of the run; SCENARIOS lists them in the order of a whole run."""

import http.client
import json
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from .bench import Bench, Running, milliseconds, status_of
from .contestants import (
    API, API_QUIET, CONFLUENT, EXPRESS, KAFKA_RUST, KAFKAJS, SERVICES, SYSTEMS, WORKER, WORKERS, Contestant,
)  # fmt: skip
from .events import USUAL_SIZE, compact, origin_of, request
from .load import Load, closed_loop, open_loop, slow_clients
from .processes import Failed, Process, free_port, run, wait_until
from .results import quantile
from .servers import KAFKA_3_VERSION, KAFKA_VERSION, PARTITIONS, Servers

CONNECTIONS = (1, 16, 64, 256)
BATCHES = (100, 1000)
# Events of the drains whose records are large: as many bytes as all of the usual ones would make.
SIZES = (USUAL_SIZE, 1000, 8000)
SAMPLES_PER_SECOND = 20
LOADED_CONNECTIONS = 1000
# What a stopped Kafka is offered: more than so many connections can have answered after its time-out.
AWAY_PER_SECOND = 2000
MANY_PARTITIONS = 256
LIVE_PER_SECOND = 5000
SCRAPES = 50


def with_cpu(processes: list[Process], load: Callable[..., Load], *arguments: object) -> dict[str, float]:
    """A load's figures, and what one request cost the service in microseconds of CPU."""
    before, start = cpu_of(processes), time.monotonic()
    measured = load(*arguments)
    seconds, used = time.monotonic() - start, cpu_of(processes) - before
    return {**measured.figures(), "cpu_us": used / (measured.per_second * seconds) * 1e6}


def cpu_of(processes: list[Process]) -> float:
    """Their CPU time so far, in seconds."""
    return sum(process.usage().cpu_seconds for process in processes)


def single(bench: Bench) -> None:
    """(a) Single POSTs, closed loop; and what Kafka's own producer reaches on this broker."""
    services = bench.present(SERVICES)
    for nth, one in bench.rounds([*services, None]):
        if one is None:
            bench.measure("single", "producer-performance", nth, {"connections": 0}, producer_performance, bench)
        else:
            bench.attempt("single", one.key, nth, single_of, bench, "single", one, nth, CONNECTIONS)


def single_of(bench: Bench, scenario: str, one: Contestant, nth: int, variants: tuple[int, ...]) -> None:
    """One contestant's turn."""
    with bench.servers.topic() as topic, bench.service(one, topic) as service:
        for connections in variants:
            bench.measure(
                scenario, one.key, nth, {"connections": connections}, posts_of, bench, service, connections
            )


def backends(bench: Bench) -> None:
    """The API's two Kafka clients, on the last Kafka that both can talk to."""
    bench.attempt("backends", KAFKA_RUST.key, 1, backends_beside, bench)


def backends_beside(bench: Bench) -> None:
    """All rounds, on a broker of their own."""
    with bench.beside(KAFKA_3_VERSION) as other:
        other.warm_broker()
        for nth, one in other.rounds(other.present([API, KAFKA_RUST])):
            other.attempt("backends", one.key, nth, single_of, other, "backends", one, nth, CONNECTIONS[-2:])


def posts_of(bench: Bench, service: Running, connections: int, size: int = USUAL_SIZE) -> dict[str, float]:
    """Single POSTs for the time of a measurement."""
    url, seconds = f"{service.url}/events/generate", bench.options.seconds
    return with_cpu([service.process], closed_loop, url, connections, seconds, bench.bodies(size))


def producer_performance(bench: Bench) -> dict[str, float]:
    """Kafka's own load generator, without HTTP: records of the usual size, batched as it likes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jars = cache / "user-activity" / "kafka" / KAFKA_VERSION
    with bench.servers.topic() as topic:
        records = max(100_000, round(bench.options.seconds * 150_000))
        output = run([
            "java", "-Xmx512m", "-cp", f"{jars}/*", "org.apache.kafka.tools.ProducerPerformance", "--topic", topic,
            "--num-records", str(records), "--record-size", str(USUAL_SIZE), "--throughput", "-1",
            "--bootstrap-server", bench.servers.brokers, "--command-property", "acks=all",
        ])  # fmt: skip
    pattern = r"([\d.]+) records/sec .* ([\d.]+) ms 50th, .* ([\d.]+) ms 99th, ([\d.]+) ms 99\.9th"
    found = re.findall(pattern, output)
    if not found:
        raise Failed(f"ProducerPerformance: {output[-300:]}")
    return dict(zip(("per_second", "p50_ms", "p99_ms", "p999_ms"), map(float, found[-1]), strict=True))


def batch(bench: Bench) -> None:
    """(b) Batches: events a second."""
    for nth, one in bench.rounds([one for one in bench.present(SERVICES) if one.batches]):
        bench.attempt("batch", one.key, nth, batch_of, bench, one, nth)


def batch_of(bench: Bench, one: Contestant, nth: int) -> None:
    """One contestant's turn."""
    with bench.servers.topic() as topic, bench.service(one, topic) as service:
        for events in BATCHES:
            bench.measure("batch", one.key, nth, {"events": events}, batches_of, bench, service, events)


def batches_of(bench: Bench, service: Running, events: int) -> dict[str, float]:
    """Batches for the time of a measurement, by 16 connections."""
    url, bodies = f"{service.url}/events/batch", bench.bodies(batch=events)
    status = status_of(url, compact([request(0)]))
    if status != 200:
        raise Failed("route missing" if status in (404, 405) else f"a batch was answered {status}")
    figures = with_cpu([service.process], closed_loop, url, 16, bench.options.seconds, bodies)
    return {**figures, "per_second": figures["per_second"] * events, "cpu_us": figures["cpu_us"] / events}


def visible(bench: Bench) -> None:
    """(c) From the POST to the list: open loop at half of what the whole system takes."""
    systems = [pair for pair in SYSTEMS if len(bench.present(pair)) == len(pair)]
    for nth, (service, worker) in bench.rounds(systems):
        bench.attempt("visible", service.key, nth, visible_of, bench, service, worker, nth)


def visible_of(bench: Bench, one: Contestant, worker: Contestant, nth: int) -> None:
    """One system's turn: its maximum, then half of that."""
    seconds = bench.options.seconds
    bench.servers.empty_redis()
    with ExitStack() as stack:
        topic = stack.enter_context(bench.servers.topic())
        stack.enter_context(bench.workers(worker, topic, bench.servers.group()))
        service = stack.enter_context(bench.service(one, topic))
        url = f"{service.url}/events/generate"

        def maximum() -> Mapping[str, float]:
            begun, before = time.monotonic(), bench.servers.stored()
            accepted = closed_loop(url, 64, seconds, bench.bodies())
            all_stored(bench.servers, topic)
            stored = (bench.servers.stored() - before) / (time.monotonic() - begun)
            return {**accepted.figures(), "stored_per_second": stored}

        all_stored(bench.servers, topic)
        found = bench.measure("visible", one.key, nth, {"load": "maximum"}, maximum)
        if found:
            rate = min(found["per_second"], found["stored_per_second"]) / 2
            bench.measure("visible", one.key, nth, {"load": "half"}, posts_at_rate, bench, service, topic, rate)
            if one is API:
                waiting = {"load": "half, waiting read"}
                bench.measure("visible", one.key, nth, waiting, posts_at_rate, bench, service, topic, rate, "wait=2s")


def posts_at_rate(bench: Bench, service: Running, topic: str, rate: float, query: str = "") -> dict[str, float]:
    """The open loop, with the sampler beside it."""
    seconds, begun = bench.options.seconds, milliseconds()
    before, redis_before = bench.servers.stored(), bench.servers.redis_seconds()
    sampler = [sys.executable, "-m", "measure.sampler", service.url, str(seconds), str(SAMPLES_PER_SECOND), query]
    output = bench.processes.folder / "sampler.log"
    output.unlink(missing_ok=True)
    sampling = Process("sampler", sampler, dict(os.environ), output)
    try:
        load = open_loop(f"{service.url}/events/generate", rate, 256, seconds, bench.bodies())
        wait_until("the sampler", 60, lambda: not sampling.alive())
    finally:
        sampling.stop()
    all_stored(bench.servers, topic)
    redis_us = (bench.servers.redis_seconds() - redis_before) / (bench.servers.stored() - before) * 1e6
    samples = samples_of(output)
    taken_up = [float(after - made) for made, after in map(origin_of, bench.servers.bodies()) if made >= begun]
    return {
        "offered_per_second": rate,
        "redis_us": redis_us,
        **load.figures(),
        **quantiles("visible", samples["visible"]),
        **quantiles("late", samples["late"]),
        **quantiles("taken_up", taken_up),
    }


def samples_of(output: Path) -> dict[str, list[float]]:
    """What the sampler printed."""
    try:
        samples: dict[str, list[float]] = json.loads(output.read_text())
    except ValueError as error:
        raise Failed(f"the sampler: {output.read_text()[-300:]}") from error
    return samples


def quantiles(name: str, values: list[float]) -> dict[str, float]:
    """The usual three, and of how many."""
    if not values:
        raise Failed(f"{name}: nothing was measured")
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    return {**{f"{name}_{key}_ms": quantile(values, share) for key, share in shares.items()}, f"{name}_count": len(values)}


def all_stored(servers: Servers, topic: str) -> None:
    """Until the store has as many events as the topic."""
    wait_until("the worker to catch up", 300, lambda: servers.stored() >= servers.records(topic))


def live(bench: Bench) -> None:
    """(c) The same at a fixed rate, with few and with many partitions."""
    for nth, partitions in bench.rounds([PARTITIONS, MANY_PARTITIONS]):
        bench.attempt("live", API.key, nth, live_of, bench, partitions, nth)


def live_of(bench: Bench, partitions: int, nth: int) -> None:
    """One variant's turn."""
    bench.servers.empty_redis()
    with bench.servers.topic(partitions) as topic, bench.workers(WORKER, topic, bench.servers.group()) as processes:
        with bench.service(API, topic) as service:
            all_stored(bench.servers, topic)
            alive(processes)
            bench.measure("live", API.key, nth, {"partitions": partitions}, posts_at_rate, bench, service, topic, LIVE_PER_SECOND)


def drain(bench: Bench) -> None:
    """(d) Workers and a topic that is full already: one and three, with and without the index of each user."""
    variants = [(workers, index) for workers in (1, 3) for index in (True, False)]
    present = bench.present(WORKERS)
    with bench.servers.topic() as topic:
        bench.servers.fill(topic, bench.options.events, USUAL_SIZE)
        for nth, (one, (workers, index)) in bench.rounds([(one, variant) for variant in variants for one in present]):
            params = {"workers": workers, "user_index": "on" if index else "off"}
            bench.measure("drain", one.key, nth, params, drain_of, bench, one, topic, workers, index)


def drain_of(bench: Bench, one: Contestant, topic: str, workers: int = 1, index: bool = True) -> dict[str, float]:
    """Events a second from the first stored one to the last, which leaves starting and joining the group out; and of the
    second half alone, which leaves out the rebalances as further workers join."""
    servers = bench.servers
    total = servers.records(topic)
    servers.empty_redis()
    before = servers.used_memory()
    with bench.workers(one, topic, servers.group(), workers, index) as processes:
        first, cpu, redis_cpu = first_stored(servers, processes), cpu_of(processes), servers.redis_seconds()
        begun = time.monotonic()
        middle = await_stored(servers, processes, (first + total) // 2)
        half_way = time.monotonic()
        await_stored(servers, processes, total)
        end = time.monotonic()
        usages = [process.usage() for process in processes]
        redis_used = servers.redis_seconds() - redis_cpu
    if first >= total:
        raise Failed("too few events to measure: all were stored at once")
    events = total - first
    used = sum(usage.cpu_seconds for usage in usages) - cpu
    return {
        "per_second": events / (end - begun),
        "settled_per_second": (total - middle) / max(end - half_way, 1e-3),
        "cpu_us": used / events * 1e6,
        "redis_us": redis_used / events * 1e6,
        "peak_mib": max(usage.peak_mib for usage in usages),
        "redis_bytes": (servers.used_memory() - before) / total,
    }


def await_stored(servers: Servers, processes: list[Process], wanted: int) -> int:
    """Until so many events are stored; gives how many there are then."""
    wait_until("the backlog to be drained", 600, lambda: alive(processes) and servers.stored() >= wanted, 0.02)
    return servers.stored()


def first_stored(servers: Servers, processes: list[Process]) -> int:
    """Waits for the first event, and says how many there are by then."""
    wait_until("a first event", 60, lambda: alive(processes) and servers.stored() > 0, 0.005)
    return servers.stored()


def alive(processes: list[Process]) -> bool:
    """True, or Failed."""
    for process in processes:
        process.must_live()
    return True


PAGES = {
    "page of 100, oldest first": "limit=100",
    "page of 100, newest first": "limit=100&order=desc",
    "page of 1000, newest first": "limit=1000&order=desc",
    "page of 100, one user": "limit=100&userId=user-00000",
}


def lists(bench: Bench) -> None:
    """(e) Pages by 16 connections, and the full export by one."""
    systems = [pair for pair in SYSTEMS if pair[0].reads and len(bench.present(pair)) == len(pair)]
    with bench.servers.topic() as topic:
        bench.servers.fill(topic, bench.options.events, USUAL_SIZE)
        for nth, (service, worker) in bench.rounds(systems):
            bench.attempt("lists", service.key, nth, lists_of, bench, service, worker, topic, nth)


def lists_of(bench: Bench, one: Contestant, worker: Contestant, topic: str, nth: int) -> None:
    """One system's turn: its worker fills the store, its service reads it."""
    drain_of(bench, worker, topic)
    with bench.servers.topic() as other, bench.service(one, other, warm=False) as service:
        for name, query in PAGES.items():
            url = f"{service.url}/events/processed?{query}"
            bench.measure("lists", one.key, nth, {"list": name}, pages_of, bench, service, url)
        bench.measure("lists", one.key, nth, {"list": "full export"}, export_of, service)


def pages_of(bench: Bench, service: Running, url: str) -> dict[str, float]:
    """Pages for the time of a measurement, after a warm-up: each kind of page has code of its own to compile."""
    closed_loop(url, 16, bench.options.warm_up)
    return with_cpu([service.process], closed_loop, url, 16, bench.options.seconds)


def export_of(service: Running) -> dict[str, float]:
    """All events as one array, thrown away by curl."""
    command = ["curl", "-sSf", "-o", "/dev/null", "-w", "%{size_download} %{time_total} %{time_starttransfer}"]
    size, seconds, first = map(float, run([*command, f"{service.url}/events/processed"]).split())
    return {
        "mib_per_second": size / seconds / 2**20,
        "seconds": seconds,
        "first_byte_ms": first * 1000,
        "peak_mib": service.process.usage().peak_mib,
    }


def memory(bench: Bench) -> None:
    """(f) Resident memory: idle, with many connections under load, and with a backlog."""
    for nth, one in bench.rounds(bench.present(SERVICES)):
        bench.measure("memory", one.key, nth, {"of": "service"}, memory_of_service, bench, one)
    with bench.servers.topic() as topic:
        bench.servers.fill(topic, bench.options.events, USUAL_SIZE)
        for nth, one in bench.rounds(bench.present(WORKERS)):
            bench.measure("memory", one.key, nth, {"of": "worker"}, memory_of_worker, bench, one, topic)


def memory_of_service(bench: Bench, one: Contestant) -> dict[str, float]:
    """After its first POST; after as many connections as it was asked to hold."""
    with bench.servers.topic() as topic, bench.service(one, topic, warm=False) as service:
        time.sleep(bench.options.warm_up)
        idle = service.process.usage().resident_mib
        load = closed_loop(f"{service.url}/events/generate", LOADED_CONNECTIONS, bench.options.seconds, bench.bodies())
        used = service.process.usage()
        return {"idle_mib": idle, "loaded_mib": used.resident_mib, "peak_mib": used.peak_mib, "per_second": load.per_second}


def memory_of_worker(bench: Bench, one: Contestant, topic: str) -> dict[str, float]:
    """With nothing to do; and the highest of a backlog."""
    with bench.servers.topic() as empty, bench.workers(one, empty, bench.servers.group()) as processes:
        time.sleep(3 + bench.options.warm_up)
        alive(processes)
        idle = processes[0].usage().resident_mib
    return {"idle_mib": idle, "peak_mib": drain_of(bench, one, topic)["peak_mib"]}


def growth_of_posts(bench: Bench) -> None:
    """(g) How single POSTs by 64 connections change with partitions and with the size of an event."""
    variants = {(partitions, USUAL_SIZE) for partitions in (1, PARTITIONS, 24)} | {(PARTITIONS, size) for size in SIZES}
    turns = [(one, *variant) for variant in sorted(variants) for one in bench.present([API, EXPRESS])]
    for nth, (one, partitions, size) in bench.rounds(turns):
        params = {"partitions": partitions, "bytes": size}
        bench.measure("growth-posts", one.key, nth, params, grown_posts, bench, one, partitions, size)


def grown_posts(bench: Bench, one: Contestant, partitions: int, size: int) -> dict[str, float]:
    """One variant."""
    with bench.servers.topic(partitions) as topic, bench.service(one, topic) as service:
        return posts_of(bench, service, 64, size)


def growth_of_drain(bench: Bench) -> None:
    """(g) How a drain changes with partitions, workers and the size of an event."""
    usual = (PARTITIONS, 1, USUAL_SIZE)
    variants = {usual, (1, 1, USUAL_SIZE), (24, 1, USUAL_SIZE)}
    variants |= {(MANY_PARTITIONS, 1, USUAL_SIZE)}
    variants |= {(PARTITIONS, workers, USUAL_SIZE) for workers in (2, 3, 6)} | {(PARTITIONS, 1, size) for size in SIZES}
    topics = sorted({(partitions, size) for partitions, _, size in variants})
    for partitions, size in topics:
        with bench.servers.topic(partitions) as topic:
            bench.servers.fill(topic, max(2000, bench.options.events * USUAL_SIZE // size), size)
            counts = sorted(workers for one, workers, other in variants if (one, other) == (partitions, size))
            turns = [(one, workers) for workers in counts for one in bench.present([WORKER, KAFKAJS])]
            for nth, (one, workers) in bench.rounds(turns):
                params = {"partitions": partitions, "workers": workers, "bytes": size}
                bench.measure("growth-drain", one.key, nth, params, drain_of, bench, one, topic, workers)


def redis_bytes(bench: Bench) -> None:
    """What Redis needs for one stored event, with and without the index of each user."""
    with bench.servers.topic() as topic:
        bench.servers.fill(topic, bench.options.events, USUAL_SIZE)
        for one in bench.present([WORKER, KAFKAJS, CONFLUENT]):
            for index in (True, False):
                params = {"user_index": "on" if index else "off"}
                bench.measure("bytes", one.key, 1, params, bytes_of, bench, one, topic, index)


def bytes_of(bench: Bench, one: Contestant, topic: str, index: bool) -> dict[str, float]:
    """Of one drain."""
    return {"redis_bytes": drain_of(bench, one, topic, index=index)["redis_bytes"]}


SLOW = {
    "bodies that come a byte at a time": (True, "/events/generate"),
    "pages of 1,000 that nobody reads": (False, "/events/processed?limit=1000"),
    "full lists that nobody reads": (False, "/events/processed"),
}
# Less than HTTP_READ_TIMEOUT, which ends a body that is not complete.
SLOW_SECONDS = 8
LISTED = 100_000


def slow(bench: Bench) -> None:
    """Memory of the API with clients that are slow, and while Kafka is away."""
    bench.attempt("slow", API.key, 1, slow_connections, bench)
    for nth, one in bench.rounds(bench.present([API])):
        params = {"clients": "posts of 8,000 bytes, Kafka stopped"}
        bench.measure("slow", one.key, nth, params, posts_without_kafka, bench, one)


def slow_connections(bench: Bench) -> None:
    """A store with a long list, then clients of each kind."""
    with bench.servers.topic() as topic:
        bench.servers.fill(topic, min(bench.options.events, LISTED), USUAL_SIZE)
        drain_of(bench, WORKER, topic)
    for nth, (clients, (drip, path)) in bench.rounds(list(SLOW.items())):
        bench.measure("slow", API.key, nth, {"clients": clients}, memory_of_slow, bench, drip, path)


def memory_of_slow(bench: Bench, drip: bool, path: str) -> dict[str, float]:
    """With as many of them as services are loaded with."""
    seconds = min(bench.options.seconds, SLOW_SECONDS)
    with bench.servers.topic() as topic, bench.service(API, topic, warm=False) as service:
        return grown(bench, service, slow_clients, f"{service.url}{path}", drip, LOADED_CONNECTIONS, seconds)


def posts_without_kafka(bench: Bench, one: Contestant) -> dict[str, float]:
    """An open loop whose posts all fail in the end, on servers of its own."""
    with bench.beside(KAFKA_VERSION) as other, other.service(one, "away", warm=False) as service:

        def load() -> dict[str, float]:
            other.servers.stop_kafka()
            url, seconds, bodies = f"{service.url}/events/generate", bench.options.seconds, bench.bodies(SIZES[-1])
            refused = open_loop(url, AWAY_PER_SECOND, LOADED_CONNECTIONS, seconds, bodies, wanted=["503"])
            return {"per_second": refused.per_second}

        return grown(bench, service, load)


def grown(bench: Bench, service: Running, load: Callable[..., Mapping[str, float]], *arguments: object) -> dict[str, float]:
    """Resident memory before a load and at its highest, and what the load says of itself."""
    time.sleep(bench.options.warm_up)
    idle = service.process.usage().resident_mib
    figures = load(*arguments)
    peak = service.process.usage().peak_mib
    return {"grown_mib": peak - idle, "idle_mib": idle, "peak_mib": peak, **figures}


def metrics_cost(bench: Bench) -> None:
    """What it costs to be observed: posts with and without it, and a scrape of a worker that has much to say."""
    for nth, one in bench.rounds(bench.present([API, API_QUIET]), 3):
        bench.measure("metrics-cost", one.key, nth, {"connections": 64}, observed_posts, bench, one)
    for nth, one in bench.rounds(bench.present([WORKER])):
        bench.measure("metrics-cost", one.key, nth, {"partitions": MANY_PARTITIONS}, scrape_of, bench, one)


def observed_posts(bench: Bench, one: Contestant) -> dict[str, float]:
    """One contestant's turn."""
    observer = nullcontext if one is API_QUIET else scraped
    with bench.servers.topic() as topic, bench.service(one, topic) as service, observer(service.url):
        return posts_of(bench, service, 64)


@contextmanager
def scraped(url: str) -> Iterator[None]:
    """Somebody asks for the metrics and the health, now and each second; fails when a connection does."""
    done = threading.Event()

    def scrape() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        while True:
            for path in ("/metrics", "/health"):
                connection.request("GET", path)
                connection.getresponse().read()
            if done.wait(1):
                return

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        try:
            yield
        finally:
            done.set()
        scraping.result()


def scrape_of(bench: Bench, one: Contestant) -> dict[str, float]:
    """Scrapes of a worker that has all partitions and knows the lag of each, by one client that stays connected."""
    port, servers = free_port(), bench.servers
    url = f"http://127.0.0.1:{port}/metrics"
    lag = "\nuser_activity_consumer_lag_messages{"
    servers.empty_redis()
    with servers.topic(MANY_PARTITIONS) as topic:
        servers.fill(topic, 100 * MANY_PARTITIONS, USUAL_SIZE)
        with bench.workers(replace(one, env={"ADMIN_PORT": str(port)}), topic, servers.group()) as processes:
            await_stored(servers, processes, servers.records(topic))

            def ready() -> bool:
                return alive(processes) and run(["curl", "-sSf", url]).count(lag) == MANY_PARTITIONS

            wait_until("the lag of all partitions", 60, ready)
            scrapes = ["-o", "/dev/null", url] * SCRAPES
            output = run(["curl", "-sSf", "-w", "%{time_total} %{size_download}\n", *scrapes])
    times, sizes = zip(*(map(float, line.split()) for line in output.splitlines()), strict=True)
    return {"p50_ms": statistics.median(times) * 1000, "max_ms": max(times) * 1000, "kib": sizes[0] / 1024}


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "single": single,
    "backends": backends,
    "batch": batch,
    "visible": visible,
    "live": live,
    "drain": drain,
    "lists": lists,
    "memory": memory,
    "slow": slow,
    "metrics-cost": metrics_cost,
    "growth-posts": growth_of_posts,
    "growth-drain": growth_of_drain,
    "bytes": redis_bytes,
}
