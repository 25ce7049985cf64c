"""Operator tables: what a runtime is known to run, as data, one JSON file per runtime beside this module.

A table's header says how it was made and with which version; each rule says one thing about one operator. Rules of the
same operator are read in file order and the first one whose conditions hold gives the verdict:

    {"op": "Cast", "inputs": [["bool"]], "outputs": [["int16"]], "status": "unsupported", ...}   the exception, then
    {"op": "Cast", "max_rank": 4, "status": "supported", ...}                                    what runs otherwise

What no rule speaks of is ``unknown``, and so is what cannot be decided because the model does not say a type or a
rank; neither is ever taken for supported. Where rules say what runs and a use lies outside of all of them, it is
unsupported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from edgesam_deploy.errors import EdgeSamDeployError, UnknownName

RuleStatus = Literal["supported", "partial", "unsupported"]
Status = Literal["supported", "partial", "unknown", "unsupported"]
SEVERITY: tuple[Status, ...] = ("supported", "partial", "unknown", "unsupported")  # from best to worst
Dtypes = tuple[str, ...] | None  # allowed element types ("float32", "seq(int64)"); None: any


@dataclass(frozen=True)
class Tensor:
    """What is known of one input or output. ``shape``: None where not even the rank is; a None in it is dynamic."""

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    constant: bool = False


@dataclass(frozen=True)
class Use:
    """One node as a rule sees it. ``opset`` is the model's for that domain; an omitted optional input is None."""

    op: str
    domain: str
    opset: int
    name: str = ""
    inputs: tuple[Tensor | None, ...] = ()
    outputs: tuple[Tensor | None, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Doubt(NamedTuple):
    """Why a rule does not hold: ``certain`` when the use breaks it, not certain when the model does not say enough."""

    certain: bool
    text: str


class Verdict(NamedTuple):
    """What a table says about one use, and the pass that removes the cause (None where there is none)."""

    status: Status
    reason: str
    source: str
    fixed_by: str | None


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Data):
    """One statement about one operator.

    since, until: opsets of its domain, both included; until None: no end. inputs, outputs: allowed types by position,
    the last entry standing for all that follow. attributes: allowed values by name. constant_inputs: positions whose
    value must be known before running. static_shape: no dynamic dimension anywhere. source: None means the table's.
    fixed_by: the pass after which the operator is gone, or conforms.
    """

    op: str = Field(min_length=1)
    domain: str = ""
    since: PositiveInt = 1
    until: PositiveInt | None = None
    inputs: tuple[Dtypes, ...] = ()
    outputs: tuple[Dtypes, ...] = ()
    max_rank: NonNegativeInt | None = None
    static_shape: bool = False
    constant_inputs: tuple[NonNegativeInt, ...] = ()
    attributes: dict[str, tuple[int | float | str, ...]] = {}
    status: RuleStatus
    reason: str = ""
    source: str | None = None
    fixed_by: str | None = None

    @model_validator(mode="after")
    def _is_meaningful(self) -> Rule:
        if self.until is not None and self.until < self.since:
            raise ValueError(f"{self.op}: until {self.until} is before since {self.since}")
        if self.status != "supported" and not self.reason:
            raise ValueError(f"{self.op}: a rule that says {self.status} must give a reason")
        return self

    def covers(self, opset: int) -> bool:
        """Whether the rule speaks of this opset."""
        return self.since <= opset and (self.until is None or opset <= self.until)

    def doubts(self, use: Use) -> Iterator[Doubt]:
        """Each condition that the use breaks, or that cannot be decided; none when the rule holds."""
        yield from _dtype_doubts("input", self.inputs, use.inputs)
        yield from _dtype_doubts("output", self.outputs, use.outputs)
        yield from self._shape_doubts(use)
        for position in self.constant_inputs:
            tensor = use.inputs[position] if position < len(use.inputs) else None
            if tensor is not None and not tensor.constant:
                yield Doubt(True, f"input {position} is not a constant")
        for name, allowed in self.attributes.items():
            value = use.attributes.get(name)
            if value not in allowed:
                yield Doubt(True, f"{name} is {value}; allowed: {', '.join(map(str, allowed))}")

    def _shape_doubts(self, use: Use) -> Iterator[Doubt]:
        if self.max_rank is None and not self.static_shape:
            return
        tensors = [tensor for tensor in (*use.inputs, *use.outputs) if tensor is not None]
        shapes = [tensor.shape for tensor in tensors if tensor.shape is not None]
        rank = max(map(len, shapes), default=0)
        if self.max_rank is not None and rank > self.max_rank:
            yield Doubt(True, f"rank {rank}; at most {self.max_rank}")
        if self.static_shape and any(None in shape for shape in shapes):
            yield Doubt(True, "a dimension is dynamic")
        if len(shapes) < len(tensors):
            yield Doubt(False, "the model does not give a rank")


def _dtype_doubts(kind: str, allowed: tuple[Dtypes, ...], tensors: tuple[Tensor | None, ...]) -> Iterator[Doubt]:
    for position, tensor in enumerate(tensors):
        types = allowed[min(position, len(allowed) - 1)] if allowed else None
        if types is None or tensor is None or tensor.dtype in types:
            continue
        if tensor.dtype is None:
            yield Doubt(False, f"the model does not give the type of {kind} {position}")
        else:
            yield Doubt(True, f"{kind} {position} is {tensor.dtype}; allowed: {', '.join(types)}")


class RuleTable(_Data):
    """A runtime's rules. ``newest_opset`` is the last one they hold for, by domain: what is newer is unknown."""

    name: str = Field(min_length=1)
    runtime: str
    version: str
    source: str
    generated_by: str
    newest_opset: dict[str, PositiveInt] = {}
    rules: tuple[Rule, ...]

    @cached_property
    def _by_operator(self) -> dict[tuple[str, str], list[Rule]]:
        found: dict[tuple[str, str], list[Rule]] = {}
        for rule in self.rules:
            found.setdefault((rule.domain, rule.op), []).append(rule)
        return found

    def judge(self, use: Use) -> Verdict:
        """What the table says about one node: the first rule that holds, or why none can be said to."""
        known = self._by_operator.get((use.domain, use.op))
        if not known:
            return self._unknown("no rule for this operator")
        newest = self.newest_opset.get(use.domain)
        if newest is not None and use.opset > newest:
            return self._unknown(f"opset {use.opset} is newer than these rules ({newest})")
        rules = [rule for rule in known if rule.covers(use.opset)]
        if not rules:
            return self._unknown(f"no rule for opset {use.opset}")
        return self._first_that_holds(rules, use)

    def _first_that_holds(self, rules: list[Rule], use: Use) -> Verdict:
        undecided: tuple[Rule, list[Doubt]] | None = None
        broken: list[tuple[Rule, list[Doubt]]] = []
        for rule in rules:
            doubts = list(rule.doubts(use))
            if any(doubt.certain for doubt in doubts):
                broken.append((rule, [doubt for doubt in doubts if doubt.certain]))
            elif doubts:
                undecided = undecided or (rule, doubts)
            elif undecided is not None and undecided[0].status != rule.status:
                break  # an earlier rule may hold or not, and the answer hangs on it
            else:
                remedy = None if rule.status == "supported" else rule.fixed_by
                return Verdict(rule.status, rule.reason, rule.source or self.source, remedy)
        if undecided is not None:
            return self._unknown("; ".join(doubt.text for doubt in undecided[1]))
        # breaking a rule that says what does not run proves nothing
        limits = [(rule, doubts) for rule, doubts in broken if rule.status != "unsupported"]
        if not limits:
            return self._unknown("no rule for this use of the operator")
        rule, doubts = min(limits, key=lambda limit: len(limit[1]))
        return Verdict("unsupported", "; ".join(d.text for d in doubts), rule.source or self.source, rule.fixed_by)

    def _unknown(self, reason: str) -> Verdict:
        return Verdict("unknown", reason, self.source, None)


def table_names() -> list[str]:
    """The tables there are."""
    return sorted(entry.name.removesuffix(".json") for entry in files(__name__).iterdir() if entry.name[-5:] == ".json")


@cache
def load_table(name: str) -> RuleTable:
    """A table by name, read once. Raises UnknownName, or EdgeSamDeployError for a file that is not a valid table."""
    entry = files(__name__) / f"{name}.json"
    if not entry.is_file():
        raise UnknownName("rule table", name, table_names())
    try:
        return parse_table(entry.read_text(encoding="utf-8"))
    except ValidationError as e:
        raise EdgeSamDeployError(f"{name}.json is not a rule table: {e}; generate it again or reinstall") from e


def parse_table(text: str) -> RuleTable:
    """A table from its JSON text. Raises pydantic's ValidationError naming the rule and the field."""
    return RuleTable.model_validate_json(text)


def dump_table(table: RuleTable) -> str:
    """JSON with one rule per line, fields at their defaults left out: the same bytes for the same table."""
    header = table.model_dump(exclude={"rules"}, exclude_defaults=True)
    rules = [rule.model_dump(mode="json", exclude_defaults=True) for rule in table.rules]
    lines = [f'"{key}": {json.dumps(value, sort_keys=True)},' for key, value in header.items()]
    body = ",\n".join(json.dumps(rule, separators=(",", ":")) for rule in rules)
    return "{\n" + "\n".join(lines) + '\n"rules": [\n' + body + "\n]}\n"
