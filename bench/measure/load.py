"""Load by wrk (closed loop) and oha (open loop): what they were asked to do and what they say came of it."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from .processes import Failed, run
from .servers import cores

SCRIPT = Path(__file__).resolve().parent.parent / "load" / "post.lua"


@dataclass(frozen=True)
class Load:
    """A measurement of requests. Latencies in milliseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    bytes_per_second: float = 0.0

    def figures(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


def closed_loop(url: str, connections: int, seconds: float, bodies: Path | None = None) -> Load:
    """Each connection sends its next request when the last one is answered. Raises Failed unless all were 2xx."""
    threads = min(connections, cores())
    env = {} if bodies is None else {"BODIES": str(bodies)}
    command = ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
    output = run([*command, "--timeout", "10s", "-s", str(SCRIPT), url], env, seconds=seconds + 60)
    found = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    if not found:
        raise Failed(f"wrk: {output[-300:]}")
    result = json.loads(found[1])
    wrong = {name: result[name] for name in ("refused", "socket_errors", "timeouts") if result[name]}
    # A few sockets that close as the time ends are no failure of the service.
    if wrong.get("refused", 0) + wrong.get("timeouts", 0) > 0 or result["requests"] == 0:
        raise Failed(f"not every request succeeded: {wrong}, {result['requests']} requests in all")
    seconds = result["seconds"]
    return Load(
        result["requests"] / seconds, result["p50_ms"], result["p99_ms"], result["p999_ms"], result["bytes"] / seconds
    )


def open_loop(url: str, rate: float, connections: int, seconds: float, bodies: Path) -> Load:
    """Requests start at a fixed rate whatever becomes of the earlier ones; latency counts from when each was due."""
    output = run(
        ["oha", "--no-tui", "--output-format", "json", "--latency-correction", "-w", "-m", "POST",
         "-T", "application/json", "-Z", str(bodies), "-q", str(max(1, round(rate))), "-c", str(connections),
         "-z", f"{max(1, round(seconds))}s", url],
        seconds=seconds + 120,
    )  # fmt: skip
    result = json.loads(output)
    statuses = result["statusCodeDistribution"]
    if set(statuses) - {"200", "201"} or not statuses:
        raise Failed(f"not every request succeeded: {statuses}, {result['errorDistribution']}")
    quantiles = result["latencyPercentiles"]
    return Load(
        result["summary"]["requestsPerSec"], *(quantiles[one] * 1000 for one in ("p50", "p99", "p99.9"))
    )
