"""Load by wrk (closed loop), oha (open loop) and slow clients: what they were asked to do, what they say came of it."""

import json
import re
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from .processes import Failed, run
from .servers import cores

FOLDER = Path(__file__).resolve().parent.parent / "load"
SCRIPT = FOLDER / "post.lua"


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


def open_loop(
    url: str, rate: float, connections: int, seconds: float, bodies: Path, wanted: Collection[str] = ("200", "201")
) -> Load:
    """Requests start at a fixed rate whatever becomes of the earlier ones; latency counts from when each was due. Raises
    Failed when a status is none of the wanted ones."""
    output = run(
        ["oha", "--no-tui", "--output-format", "json", "--latency-correction", "-w", "-m", "POST",
         "-T", "application/json", "-Z", str(bodies), "-q", str(max(1, round(rate))), "-c", str(connections),
         "-z", f"{max(1, round(seconds))}s", url],
        seconds=seconds + 120,
    )  # fmt: skip
    result = json.loads(output)
    statuses = result["statusCodeDistribution"]
    if set(statuses) - set(wanted) or not statuses:
        raise Failed(f"not every reply was a {' or '.join(wanted)}: {statuses}, {result['errorDistribution']}")
    quantiles = result["latencyPercentiles"]
    return Load(
        result["summary"]["requestsPerSec"], *(quantiles[one] * 1000 for one in ("p50", "p99", "p99.9"))
    )


def slow_clients(url: str, drip: bool, connections: int, seconds: float) -> dict[str, int]:
    """Connections that read nothing, or (`drip`) also send a byte at a time; gives how many were held until the end, and
    how many of these had been answered with success."""
    held = ["drip" if drip else "unread", url, str(connections), str(seconds)]
    replies: dict[str, int] = json.loads(run([sys.executable, str(FOLDER / "slow_clients.py"), *held], seconds=seconds + 60))
    return {"held": replies.get("nothing yet", 0) + replies.get("200", 0), "answered": replies.get("200", 0)}
