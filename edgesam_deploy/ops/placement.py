"""Where a runtime of several processors would run a file: an estimate from the rules of one of them.

Nothing was run: the rules say what the processor can take, and the runtime also chooses by cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from edgesam_deploy.ops.onnx_graph import Graph
from edgesam_deploy.targets.rules import RuleTable, Status, Verdict

LABEL = "static estimate"
Place = Literal["unit", "elsewhere", "unknown"]
# a use that is supported in part may run on the unit or not: at a cost, or by a detour
PLACES: Mapping[Status, Place] = {
    "supported": "unit",
    "partial": "unknown",
    "unknown": "unknown",
    "unsupported": "elsewhere",
}
NEVER = -(1 << 30)  # less than any number of switches


@dataclass(frozen=True)
class Placement:
    """How the operators of a file divide between ``unit`` and the other processors, by one target's rules.

    nodes, places: one per operator, in the order that the file lists them. switches: how often neighbours in it run on
    different processors, at least (what is unknown runs where its neighbours do) and at most. source: of the rules.
    """

    target: str
    label: str
    unit: str
    runtime: str
    source: str
    nodes: tuple[str, ...]
    places: tuple[Place, ...]
    switches: tuple[int, int]

    def count(self, place: Place) -> int:
        """Operators that run in a place."""
        return self.places.count(place)

    def sentence(self) -> str:
        """The estimate for a terminal."""
        least, most = self.switches
        switches = f"{least}" if least == most else f"{least} to {most}"
        return (
            f"{self.target}: {self.label}: {self.count('unit')} of {len(self.places)} operators on the {self.unit}, "
            f"{self.count('elsewhere')} elsewhere, {self.count('unknown')} unknown; switches: {switches}"
        )


def placed(target: str, table: RuleTable, graph: Graph, verdicts: Sequence[Verdict]) -> Placement:
    """The placement that a table's verdicts on a graph's uses amount to."""
    places = tuple(PLACES[verdict.status] for verdict in verdicts)
    bounds = [switches(function) for function in _functions(places, graph.starts)]
    return Placement(
        target,
        LABEL,
        table.unit,
        table.runtime,
        table.source,
        tuple(use.name for use in graph.uses),
        places,
        (sum(least for least, _ in bounds), sum(most for _, most in bounds)),
    )


def _functions(places: Sequence[Place], starts: Sequence[int]) -> Iterator[Sequence[Place]]:
    for start, end in zip(starts, (*starts[1:], len(places)), strict=True):
        yield places[start:end]


def switches(places: Sequence[Place]) -> tuple[int, int]:
    """How often the place changes along ``places``, at least and at most over all choices for what is unknown."""
    known = [place for place in places if place != "unknown"]
    least = sum(before != after for before, after in pairwise(known))
    here, there = 0, 0  # the most changes so far where the last one ran on the unit, or elsewhere
    for index, place in enumerate(places):
        change = 1 if index else 0
        here, there = max(here, there + change), max(there, here + change)
        here, there = (NEVER if place == "elsewhere" else here), (NEVER if place == "unit" else there)
    return least, max(here, there)
