"""docs/BENCHMARKS.md and its plots, from the figures of a run. Says what was measured, nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plot import Series, bars
from .results import Results, Spread

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A column of figures: its name in the results, its title, and how it is written."""

    key: str
    title: str
    digits: int = 0
    # For the ratio column: more is better unless it is a cost.
    cost: bool = False


RATE = Figure("per_second", "requests/s")
EVENTS = Figure("per_second", "events/s")
SETTLED = Figure("settled_per_second", "events/s, second half")
PAGES = Figure("per_second", "pages/s")
QUANTILES = (("50", "50"), ("99", "99"), ("999", "99.9"))
P50, P99, P999 = (Figure(f"p{key}_ms", f"p{name} ms", 2, True) for key, name in QUANTILES)
# Not the third quantile: there are too few samples.
VISIBLE = tuple(Figure(f"visible_p{key}_ms", f"visible p{name} ms", 1, True) for key, name in QUANTILES[:2])
LATE = tuple(Figure(f"late_p{key}_ms", f"observer late p{name} ms", 1, True) for key, name in QUANTILES[:2])
TAKEN_UP = tuple(Figure(f"taken_up_p{key}_ms", f"taken up p{name} ms", 0, True) for key, name in QUANTILES)
CPU = Figure("cpu_us", "CPU µs", 1, True)
REDIS = Figure("redis_us", "Redis CPU µs", 1, True)
PEAK = Figure("peak_mib", "peak MiB", 1, True)
IDLE = Figure("idle_mib", "idle MiB", 1, True)
LOADED = Figure("loaded_mib", "loaded MiB", 1, True)


@dataclass(frozen=True)
class Section:
    """A scenario's part of the page."""

    scenario: str
    title: str
    text: str
    ours: str
    label: Callable[[Params], str]
    figures: Sequence[Figure]
    plots: Sequence[tuple[Figure, bool]] = ()
    only: Callable[[Params], bool] = lambda _: True
    # What is compared beside the first figure.
    ratios: Sequence[Figure] = ()
    # What is said besides where a figure was measured.
    notes: Sequence[tuple[Figure, str]] = ()


def values_label(*names: str) -> Callable[[Params], str]:
    """A variant's name: the values of its parameters."""
    return lambda params: ", ".join(f"{params[name]:,} {name}" for name in names if name in params)


SECTIONS = [
    Section(
        "single", "Single POSTs",
        "`POST /events/generate`, closed loop by wrk. One event a request, of about 191 bytes in Kafka; each 2xx follows the "
        "acknowledgement of all in-sync replicas (`acks=all`). CPU is that of the service alone, per request.",
        "api", values_label("connections"), (RATE, P50, P99, P999, CPU), ((RATE, False), (P99, True)),
        lambda params: params.get("connections") != 0, (P99,),
    ),
    Section(
        "single", "Kafka's own producer",
        "`ProducerPerformance` of Apache Kafka with `acks=all`, records of 191 bytes, no HTTP: what this broker takes on this "
        "machine from a client that batches as it likes. Latency is from handing over to the acknowledgement.",
        "producer-performance", lambda _: "records", (Figure("per_second", "records/s"), P50, P99, P999), (),
        lambda params: params.get("connections") == 0,
    ),
    Section(
        "backends", "The API's two Kafka clients",
        "`POST /events/generate`, closed loop by wrk, on Apache Kafka 3.9.1: the crate that `KAFKA_CLIENT=kafka-rust` publishes "
        "with can't talk to a newer one. Only the first of the two is idempotent.",
        "api", values_label("connections"), (RATE, P50, P99, P999, CPU), ((RATE, False),), ratios=(P99, CPU),
    ),
    Section(
        "batch", "Batches",
        "`POST /events/batch`, 16 connections, closed loop by wrk. Latency is per request, CPU per event.",
        "api", lambda params: f"{params['events']:,} a batch", (EVENTS, P50, P99, P999, CPU), ((EVENTS, False),),
        ratios=(P99,),
    ),
    Section(
        "visible", "From the POST to the list",
        "API, Kafka, one worker and Redis on this machine. First the system's own maximum (64 connections, closed loop; *stored* "
        "counts until the worker has caught up), then half of the lower of the two as an open loop by oha, its latencies corrected "
        "for coordinated omission. *Visible* is what a client sees: from sending the POST to the first `GET /events/{id}` "
        "that has it, asked every millisecond, for a few events (*samples*) beside the load. *Taken up* is over all events of the "
        "open loop: `processedAt` minus `timestamp`, both stamped on this machine in whole milliseconds; parsing the request "
        "comes before it, the write to Redis after it. Redis CPU is that of its main thread, per event.",
        "api", lambda params: str(params["load"]),
        (Figure("per_second", "POSTs/s"), Figure("stored_per_second", "stored/s"), P50, P99, P999,
         *VISIBLE, Figure("visible_count", "samples"), *LATE, *TAKEN_UP, REDIS),
        ((VISIBLE[0], True), (VISIBLE[1], True)), ratios=VISIBLE,
        notes=((LATE[0], "Who observes needs the cores as well: *observer late* is how long it was kept from going on when it "
                "wanted to, which is part of what it saw. *Waiting read* needs no such asking: it is one "
                "`GET /events/{id}?wait=2s`, which only ours has."),),
    ),
    Section(
        "live", "5,000 events a second",
        "As the open loop above, at 5,000 single POSTs a second, on topics with few and with many partitions. With many, the "
        "rate falls to some hundred POSTs a second for seconds at a time; the cause is not known yet.",
        "api", values_label("partitions"),
        (Figure("per_second", "POSTs/s"), P50, P99, P999, *VISIBLE, Figure("visible_count", "samples"), *TAKEN_UP, REDIS),
    ),
    Section(
        "drain", "Draining a backlog",
        "A topic that is full already, from the first stored event to the last: starting and the first join are left out, later "
        "rebalances are not. *Second half* is the rate of the last half of the events, when all workers have joined. CPU is that of "
        "the workers, Redis CPU that of its main thread, per event; Redis bytes are `used_memory` after minus before, per event.",
        "worker", lambda params: f"{params['workers']} workers, user index {params['user_index']}",
        (EVENTS, SETTLED, CPU, REDIS, PEAK, Figure("redis_bytes", "Redis bytes", 0, True)), ((EVENTS, False),), ratios=(SETTLED,),
    ),
    Section(
        "lists", "Lists",
        "`GET /events/processed`, with all events of a drain in Redis. 16 connections, closed loop by wrk.",
        "api", lambda params: str(params["list"]), (PAGES, P50, P99, P999, CPU), ((PAGES, True),),
        lambda params: params.get("list") != "full export",
    ),
    Section(
        "lists", "Full export", "The whole list as one JSON array to one client (curl).",
        "api", lambda params: str(params["list"]),
        (Figure("mib_per_second", "MiB/s", 1), Figure("seconds", "seconds", 2, True),
         Figure("first_byte_ms", "first byte ms", 1, True), PEAK), (),
        lambda params: params.get("list") == "full export",
    ),
    Section(
        "memory", "Memory of the services",
        "Resident memory of all processes of a contestant: after its first POST, with 1,000 connections under load, at its peak.",
        "api", lambda _: "resident", (PEAK, IDLE, LOADED), ((PEAK, True),), lambda params: params.get("of") == "service", (IDLE,),
    ),
    Section(
        "memory", "Memory of the workers",
        "Resident memory of all processes of a contestant: with nothing to do, and the highest while a backlog is drained.",
        "worker", lambda _: "resident", (PEAK, IDLE), (), lambda params: params.get("of") == "worker", (IDLE,),
    ),
    Section(
        "slow", "Memory with slow clients",
        "Resident memory of the API, idle after its first POST and at its highest with 1,000 connections that are slow for 8 s at "
        "most: bodies of which a byte comes each 0.1 s, and lists whose clients read nothing, of 100,000 events or the whole "
        "backlog if that is less. No load generator does that, a small program of this bench does. *Held* connections were "
        "neither refused nor cut off by the end; *answered* ones have had a `200`. With Kafka stopped, oha posts as fast as 1,000 "
        "connections are answered, 2,000 a second at most; each reply is a `503`.",
        "api", lambda params: str(params["clients"]),
        (Figure("grown_mib", "peak minus idle MiB", 1, True), IDLE, PEAK, Figure("held", "held"), Figure("answered", "answered"),
         Figure("per_second", "replies/s")),
    ),
    Section(
        "metrics-cost", "The cost of being observed",
        "Single POSTs, 64 connections, closed loop by wrk: with the defaults (logs at `info`), `/metrics` and `/health` read each "
        "second, against logs off and neither read. Counting itself can't be turned off: it is in both. The difference is small, "
        "so there are three times the rounds.",
        "api", values_label("connections"), (RATE, P50, P99, CPU), (), lambda params: "connections" in params, (P99, CPU),
    ),
    Section(
        "metrics-cost", "A scrape",
        "`GET /metrics` of one worker that has all partitions of a topic, 50 times by one curl; nothing else happens.",
        "worker", values_label("partitions"),
        (Figure("p50_ms", "p50 ms", 2, True), Figure("max_ms", "max ms", 2, True), Figure("kib", "KiB")), (),
        lambda params: "partitions" in params,
    ),
    Section(
        "growth-posts", "Growth: single POSTs", "64 connections; partitions of the topic, and bytes of the event in Kafka.",
        "api", values_label("partitions", "bytes"), (RATE, P50, P99, CPU), ((RATE, False),),
    ),
    Section(
        "growth-drain", "Growth: drain",
        "Partitions, workers, and bytes of the event in Kafka; larger events are fewer, so that the topic stays as large.",
        "worker", values_label("partitions", "workers", "bytes"), (EVENTS, SETTLED, CPU, REDIS, PEAK), ((EVENTS, False),),
        ratios=(SETTLED,),
    ),
    Section(
        "bytes", "Redis memory per event",
        "`used_memory` after minus before, divided by the events; 20,000 users. Ours keeps its positions there too.",
        "worker", lambda params: f"user index {params['user_index']}", (Figure("redis_bytes", "bytes", 0, True),),
    ),
]  # fmt: skip


def render(results: Results, docs: Path) -> None:
    """Writes BENCHMARKS.md and benchmarks/*.svg into the folder of documents, with a copy of the figures."""
    plots = docs / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    for old in plots.glob("*.svg"):
        old.unlink()
    results.write(plots / "results.json")
    parts = [heading(results), *(part for section in SECTIONS if (part := section_text(results, section, plots)))]
    (docs / "BENCHMARKS.md").write_text("\n".join([*parts, ending(results)]))


def heading(results: Results) -> str:
    """What was measured, on what, and how."""
    about, options = results.about, results.about["options"]
    facts = "\n".join(f"| {name} | {value} |" for name, value in about["facts"].items())
    settings = "\n".join(f"| {one['title']} | {one['settings']} |" for one in about["contestants"].values())
    return f"""# Benchmarks

Written by `scripts/bench --render`; `scripts/bench` measures again. Load generator, Kafka, Redis and contestant share one
machine, one contestant at a time on the same broker, each round beginning with another one. Figures are medians; lines in
the plots go from the lowest round to the highest. Rounds: {options["rounds"]}; seconds a load: {options["seconds"]:g}; events in
a backlog: {options["events"]:,}. **Ours ×** is our figure divided by the contestant's: the median over the rounds of the ratio
within each. For latency, CPU and memory less is better. Raw figures: [results.json](benchmarks/results.json).

| | |
|---|---|
{facts}

| contestant | settings |
|---|---|
{settings}
"""


def section_text(results: Results, section: Section, plots: Path) -> str | None:
    """Text, plots and table of a section; None when nothing of it was measured."""
    variants = [one for one in results.params(section.scenario) if section.only(one) and measured(results, section, one)]
    if not variants:
        return None
    contestants = [
        key for key in results.contestants(section.scenario)
        if any(results.spread(section.scenario, key, params, one.key) for params in variants for one in section.figures)
    ]  # fmt: skip
    images = [image(results, section, variants, contestants, figure, log, plots) for figure, log in section.plots]
    figures = [one for one in section.figures if any(spreads(results, section, one, variants, contestants))]
    compared = [
        one for one in (figures[0], *section.ratios)
        if one in figures and any(ratio_text(results, section, key, params, one) for key in contestants for params in variants)
    ]  # fmt: skip
    rows = table(results, section, variants, contestants, figures, compared)
    notes = (note for figure, note in section.notes if figure in figures)
    words = " ".join([section.text, *notes, *run_text(results, section.scenario)])
    return "\n".join([f"## {section.title}\n", words + "\n", *images, rows])


def run_text(results: Results, scenario: str) -> list[str]:
    """Which run a scenario is of, unless it is that of the page."""
    run = results.about.get("older", {}).get(scenario)
    if not run:
        return []
    facts, options = run["facts"], run["options"]
    return [
        f"**Of an older run:** commit {facts['commit']}, {facts['date']}, {options['rounds']} rounds, "
        f"{options['seconds']:g} seconds a load, {options['events']:,} events in a backlog."
    ]


def measured(results: Results, section: Section, params: Params) -> bool:
    """At least one contestant has a figure for this variant."""
    keys = results.contestants(section.scenario)
    return any(results.spread(section.scenario, key, params, figure.key) for key in keys for figure in section.figures)


def spreads(
    results: Results, section: Section, figure: Figure, variants: Sequence[Params], contestants: Sequence[str]
) -> list[Spread | None]:
    """One figure of everybody."""
    return [results.spread(section.scenario, key, params, figure.key) for key in contestants for params in variants]


def table(
    results: Results, section: Section, variants: Sequence[Params], contestants: Sequence[str], figures: Sequence[Figure],
    compared: Sequence[Figure],
) -> str:  # fmt: skip
    """A row for each variant and contestant."""
    head = ["", "contestant", *(figure.title for figure in figures), *(f"ours × {figure.title}" for figure in compared)]
    lines = [head, ["---"] * len(head)]
    for params in variants:
        for key in contestants:
            found = [results.spread(section.scenario, key, params, figure.key) for figure in figures]
            if any(found):
                ratios = [ratio_text(results, section, key, params, figure) for figure in compared]
                lines.append([section.label(params), title_of(results, key), *map(number, figures, found), *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def ratio_text(results: Results, section: Section, key: str, params: Params, figure: Figure) -> str:
    """Our figure divided by a peer's."""
    ratio = None if key == section.ours else results.ratio(section.scenario, section.ours, key, params, figure.key)
    return "" if ratio is None else f"{ratio:.2f}"


def number(figure: Figure, spread: Spread | None) -> str:
    """A median as it is written."""
    return "" if spread is None else f"{spread.median:,.{figure.digits}f}"


def image(
    results: Results, section: Section, variants: Sequence[Params], contestants: Sequence[str], figure: Figure,
    logarithmic: bool, plots: Path,
) -> str:  # fmt: skip
    """Draws a plot and gives the line that shows it."""
    variants = [one for one in variants if any(results.spread(section.scenario, key, one, figure.key) for key in contestants)]
    series = [
        Series(title_of(results, key), [results.spread(section.scenario, key, params, figure.key) for params in variants])
        for key in contestants
    ]
    name = f"{section.scenario}-{figure.key.replace('_', '-')}.svg"
    labels = [section.label(one).replace("user index", "index") for one in variants]
    title = f"{section.title}: {figure.title}"
    (plots / name).write_text(bars(title, figure.title, labels, series, logarithmic))
    return f"![{title}](benchmarks/{name})\n"


def title_of(results: Results, key: str) -> str:
    """A contestant's name."""
    known = results.about["contestants"].get(key)
    return known["title"] if known else key


def ending(results: Results) -> str:
    """What was left out, and why."""
    missing = [f"- {title_of(results, key)}: {reason}" for key, reason in results.about["missing"].items()]
    failed = [
        f"- {one.scenario}, {title_of(results, one.contestant)}, {dict(one.params) or 'all'}, round {one.round}: {one.error}"
        for one in results.errors()
    ]
    lines = ["## Not measured\n", *missing, *failed]
    return "\n".join(lines if len(lines) > 1 else [*lines, "Nothing was left out."]) + "\n"
