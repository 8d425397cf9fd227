"""The figures of a run, and their medians. Written to disk after each of them, so that nothing is lost on the way."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One measurement, or why it could not be made."""

    scenario: str
    contestant: str
    round: int
    params: Mapping[str, Any]
    figures: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True)
class Spread:
    """Of all rounds."""

    median: float
    low: float
    high: float


class Results:
    """All records of a run, and what they were measured with."""

    def __init__(self, about: dict[str, Any], records: Iterable[Record] = ()) -> None:
        self.about = about
        self.records = list(records)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """From a file that `write` made."""
        content = json.loads(path.read_text())
        return cls(content["about"], (Record(**one) for one in content["records"]))

    def completed(self, older: "Results") -> "Results":
        """With the scenarios that only an older run has. `about` says of which run each of them is."""
        mine = {one.scenario for one in self.records}
        taken = [one for one in older.records if one.scenario not in mine]
        run = {key: older.about[key] for key in ("facts", "options")}
        told = {one.scenario: older.about.get("older", {}).get(one.scenario, run) for one in taken}
        return Results({**self.about, "older": {**self.about.get("older", {}), **told}}, [*self.records, *taken])

    def write(self, path: Path) -> None:
        """To a file that appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        content = {"about": self.about, "records": [asdict(one) for one in self.records]}
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(path)

    def select(self, scenario: str, contestant: str, params: Mapping[str, Any]) -> list[Record]:
        """The rounds of one measurement."""
        return [
            one for one in self.records
            if (one.scenario, one.contestant) == (scenario, contestant) and dict(one.params) == dict(params)
        ]  # fmt: skip

    def params(self, scenario: str) -> list[dict[str, Any]]:
        """The variants of a scenario, in the order of their first measurement."""
        found: list[dict[str, Any]] = []
        for one in self.records:
            if one.scenario == scenario and dict(one.params) not in found:
                found.append(dict(one.params))
        return found

    def contestants(self, scenario: str) -> list[str]:
        """Who took part, in the order of the first round."""
        return list(dict.fromkeys(one.contestant for one in self.records if one.scenario == scenario))

    def spread(self, scenario: str, contestant: str, params: Mapping[str, Any], figure: str) -> Spread | None:
        """Median, lowest and highest of the rounds that succeeded."""
        rounds = self.select(scenario, contestant, params)
        values = [one.figures[figure] for one in rounds if one.error is None and figure in one.figures]
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def ratio(self, scenario: str, ours: str, peer: str, params: Mapping[str, Any], figure: str) -> float | None:
        """The median over the rounds of ours divided by the peer's of the same round."""
        peers = {one.round: one.figures.get(figure) for one in self.select(scenario, peer, params)}
        ratios = [
            one.figures[figure] / other
            for one in self.select(scenario, ours, params)
            if figure in one.figures and (other := peers.get(one.round))
        ]
        return statistics.median(ratios) if ratios else None

    def errors(self) -> list[Record]:
        """What could not be measured, each reason once."""
        found: dict[tuple[str, str, str], Record] = {}
        for one in self.records:
            if one.error is not None:
                found.setdefault((one.scenario, one.contestant, one.error), one)
        return list(found.values())


def quantile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
