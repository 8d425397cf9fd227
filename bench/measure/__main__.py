"""The command line of scripts/bench, which prepares what this needs."""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from .bench import Bench, Options
from .contestants import CONTESTANTS, Commands, Paths, quiet_environment
from .processes import Processes
from .report import render
from .results import Results
from .sampler import NICE
from .scenarios import SAMPLES_PER_SECOND, SCENARIOS
from .servers import KAFKA_3_VERSION, KAFKA_VERSION, PARTITIONS, Servers, cores

ABSENT = {
    "Redpanda Connect": "its Go module did not resolve where this bench was written; Benthos, its core, takes part instead, "
    "with its own Kafka output, in the last version under its old module path",
    "Strimzi Kafka Bridge": "its jar (io.strimzi:kafka-bridge) did not resolve with Maven where this bench was written",
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line, which scripts/bench documents."""
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(SCENARIOS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--events", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--render", type=Path)
    parser.add_argument("--older", type=Path)
    parser.add_argument("--docs", type=Path)
    chosen = parser.parse_args()
    chosen.only = chosen.only.split(",")
    unknown = set(chosen.only) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are: {', '.join(SCENARIOS)}")
    return chosen


def options(chosen: argparse.Namespace) -> Options:
    """How long and how often: enough to trust, or enough to see that it works."""
    base = Options(1, 2, 1, 20_000, 2) if chosen.quick else Options(3, 10, 5, 1_000_000, 20)
    return Options(
        chosen.rounds or base.rounds, chosen.seconds or base.seconds, base.warm_up, chosen.events or base.events,
        base.broker_warm_up,
    )  # fmt: skip


def say(line: str) -> None:
    """A line of progress."""
    print(f"==> {line}", file=sys.stderr, flush=True)


def first_line(*command: str) -> str:
    """What a tool says its version is, on standard output or error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "not there"
    return ((done.stdout or done.stderr).splitlines() or [""])[0].strip()


def machine() -> str:
    """Processor, cores, memory."""
    info = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{models[0] if models else platform.machine()}, {cores()} cores, {memory:.0f} GiB"


def facts(root: Path) -> dict[str, str]:
    """What the figures were measured with."""
    git = ("git", "-C", str(root))
    changed = " and changes" if first_line(*git, "status", "--porcelain") else ""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": first_line(*git, "rev-parse", "--short=12", "HEAD") + changed,
        "machine": machine(),
        "system": f"{platform.system()} {platform.release()}",
        "Kafka": f"Apache Kafka {KAFKA_VERSION}, one broker, {PARTITIONS} partitions unless said otherwise; "
        f"{KAFKA_3_VERSION} for the comparison of the API's Kafka clients",
        "Java": first_line("java", "-version"),
        "Redis": first_line("redis-server", "--version") + "; appendonly, fsync every second, rewritten from 1 GB on",
        "Rust": first_line("rustc", "--version"),
        "Node.js": first_line("node", "--version"),
        "Python, Go": f"{first_line(sys.executable, '--version')}, {first_line('go', 'version')}",
        "load": f"{first_line('wrk', '--version').partition(' Copyright')[0]}; {first_line('oha', '--version')}",
        "observer": f"of what is visible: one thread, {SAMPLES_PER_SECOND} events a second, nice {NICE} where that is permitted",
        "acknowledgement": "all in-sync replicas (acks=all), in every contestant that publishes",
    }  # fmt: skip


def about(root: Path, chosen: Options) -> dict[str, Any]:
    """What a results file says of itself."""
    named = {one.key: {"title": one.title, "settings": one.settings} for one in CONTESTANTS}
    named["producer-performance"] = {"title": "Kafka's ProducerPerformance", "settings": "acks=all, its defaults otherwise"}
    return {"facts": facts(root), "options": asdict(chosen), "contestants": named, "missing": dict(ABSENT)}


def measure(paths: Paths, chosen: argparse.Namespace) -> Path:
    """Runs the scenarios and gives the file with their figures."""
    quiet_environment()
    output: Path = (chosen.output or paths.root / "bench" / "results") / "latest.json"
    results = Results(about(paths.root, options(chosen)))
    commands = Commands(paths, say)
    for one in CONTESTANTS:
        commands.of(one)
    runs = paths.data / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=runs))
    try:
        with Processes(folder) as processes:
            servers = Servers(processes, paths.root)
            bench = Bench(paths, servers, processes, commands, options(chosen), results, output, say)
            results.about["missing"] |= commands.missing
            servers.await_ready()
            bench.warm_broker()
            for name in SCENARIOS:
                if name in chosen.only:
                    SCENARIOS[name](bench)
    finally:
        keep_logs(folder)
    return output


def keep_logs(folder: Path) -> None:
    """Deletes what servers and load have left in the folder of a run."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".log":
            path.unlink()


def interrupted(number: int, _: FrameType | None) -> None:
    """Ends the run through every `finally`, so that nothing stays behind."""
    sys.exit(128 + number)


def main() -> None:
    """Measures, or renders what was measured."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, interrupted)
    chosen = arguments()
    root = Path(__file__).resolve().parents[2]
    docs = chosen.docs or root / "docs"
    if chosen.render:
        results = Results.read(chosen.render)
        render(results.completed(Results.read(chosen.older)) if chosen.older else results, docs)
        say(f"written: {docs / 'BENCHMARKS.md'}")
        return
    paths = Paths(root, Path(os.environ["BENCH_DATA"]), Path(os.environ["BENCH_BINARIES"]))
    output = measure(paths, chosen)
    say(f"figures: {output}; next: scripts/bench --render {output}")


if __name__ == "__main__":
    main()
