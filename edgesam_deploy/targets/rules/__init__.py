"""Operator tables: what a runtime is known to run, as data, one JSON file per runtime beside this module.

A table's header says how it was made and with which version; each rule says one thing about one operator. Rules of the
same operator are read in file order and the first one whose conditions hold gives the verdict:

    {"op": "Cast", "inputs": [["bool"]], "outputs": [["int16"]], "status": "unsupported", ...}   the exception, then
    {"op": "Cast", "max_rank": 4, "status": "supported", ...}                                    what runs otherwise

What no rule speaks of is ``unknown``, and so is what cannot be decided because the model does not say a type or a
rank; neither is ever taken for supported. Where rules say what runs and a use lies outside of all of them, it is
unsupported.

REPORTS gives each table the name that a user asks for it by; plug-ins add tables under names of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from edgesam_deploy import plugins
from edgesam_deploy.errors import EdgeSamDeployError, UnknownName

RuleStatus = Literal["supported", "partial", "unsupported"]
Status = Literal["supported", "partial", "unknown", "unsupported"]
SEVERITY: tuple[Status, ...] = ("supported", "partial", "unknown", "unsupported")  # from best to worst
Dtypes = tuple[str, ...] | None  # allowed element types ("float32", "seq(int64)"); None: any
Scalar = int | float | str
Condition = Literal["int64", "dtype", "rank", "batch", "dynamic", "constant", "value", "attribute", "pattern", "size"]
REPORTS: Mapping[str, str] = {
    "onnx": "onnxruntime_cpu",
    "openvino": "openvino",
    "qnn": "qnn_htp",
    "tv": "npu_tv",
    "mediatek": "npu_mediatek",
    "rknn": "npu_rknn",
    "generic": "npu_generic",
    "tensorrt10": "tensorrt_10",
    "tensorrt11": "tensorrt_11",
    "coreml": "coreml",
    "coreml-ane-m1": "coreml_ane_m1",
    "coreml-ane-m2": "coreml_ane_m2",
    "coreml-ane-m3": "coreml_ane_m3",
    "tflite": "tflite_builtin",
    "tflite-gpu": "tflite_gpu",
    "xnnpack": "xnnpack",
}
ALIASES: Mapping[str, str] = {
    "npu": "tv", "npu-tv": "tv", "npu-mediatek": "mediatek", "npu-rknn": "rknn", "npu-generic": "generic",
    "tensorrt": "tensorrt10", "coreml-ane": "coreml-ane-m1", "coreml-ane-a13": "coreml-ane-m1",
    "coreml-ane-a14": "coreml-ane-m2", "coreml-ane-a15": "coreml-ane-m3", "onnxruntime": "onnx",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """What is known of one input or output. ``shape``: None where not even the rank is; a None in it is dynamic.

    values: the elements of a small constant, such as a list of axes.
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    constant: bool = False
    values: tuple[int | float, ...] | None = None


@dataclass(frozen=True)
class Use:
    """One node as a rule sees it. ``opset`` is the model's for that domain; an omitted optional input is None.

    pattern: what the node is a part of where compilers know the whole ("Gelu" for its Erf).
    """

    op: str
    domain: str
    opset: int
    name: str = ""
    inputs: tuple[Tensor | None, ...] = ()
    outputs: tuple[Tensor | None, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    pattern: str = ""


class Doubt(NamedTuple):
    """Why a rule does not hold: ``certain`` when the use breaks it, not certain when the model does not say enough."""

    certain: bool
    text: str
    condition: Condition


class Verdict(NamedTuple):
    """What a table says about one use, and the pass that removes the cause (None where there is none).

    Several causes have several passes, in the order of the causes, separated by ", ". lowers_to: see Rule.
    """

    status: Status
    reason: str
    source: str
    fixed_by: str | None
    lowers_to: str = ""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Data):
    """One statement about one operator.

    since, until: opsets of its domain, both included; until None: no end. inputs, outputs: allowed types by position,
    the last entry standing for all that follow. min_rank, max_rank: of the first input, and of every tensor, since
    operands may be scalars. batch: the first dimension of the first input. attributes: allowed values by name; each
    element of a list must be one of them. constant_inputs: positions whose value must be known before running. values:
    allowed elements of constant inputs by position. max_kernel: width of a convolution's kernel. pattern: what the node
    must be a part of. static_shape: no dynamic dimension anywhere. source: None means the table's. fixed_by: the pass
    after which the operator is gone, or conforms. lowers_to: what the operator becomes in the runtime's own vocabulary,
    where that is another one.
    """

    op: str = Field(min_length=1)
    domain: str = ""
    since: PositiveInt = 1
    until: PositiveInt | None = None
    inputs: tuple[Dtypes, ...] = ()
    outputs: tuple[Dtypes, ...] = ()
    min_rank: NonNegativeInt = 0
    max_rank: NonNegativeInt | None = None
    static_shape: bool = False
    batch: PositiveInt | None = None
    constant_inputs: tuple[NonNegativeInt, ...] = ()
    values: dict[NonNegativeInt, tuple[int | float, ...]] = {}
    attributes: dict[str, tuple[Scalar, ...]] = {}
    max_kernel: PositiveInt | None = None
    pattern: str = ""
    lowers_to: str = ""
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
            tensor = _input(use, position)
            if tensor is not None and not tensor.constant:
                yield Doubt(True, f"input {position} is not a constant", "constant")
        for position, numbers in self.values.items():
            yield from _value_doubts(position, numbers, _input(use, position))
        for name, allowed in self.attributes.items():
            value = use.attributes.get(name)
            if any(element not in allowed for element in (value if isinstance(value, tuple) else (value,))):
                yield Doubt(True, f"{name} is {value}; allowed: {_listed(allowed)}", "attribute")
        kernel = _input(use, 1)
        width = kernel.shape[-1] if kernel is not None and kernel.shape else None
        if self.max_kernel is not None and width is not None and width > self.max_kernel:
            yield Doubt(True, f"a kernel {width} wide; at most {self.max_kernel}", "size")
        if self.pattern and use.pattern != self.pattern:
            yield Doubt(True, f"it is not part of a {self.pattern} pattern", "pattern")

    def _shape_doubts(self, use: Use) -> Iterator[Doubt]:
        if (self.max_rank, self.batch, self.static_shape, self.min_rank) == (None, None, False, 0):
            return
        tensors = [tensor for tensor in (*use.inputs, *use.outputs) if tensor is not None]
        shapes = [tensor.shape for tensor in tensors if tensor.shape is not None]
        rank = max(map(len, shapes), default=0)
        if self.max_rank is not None and rank > self.max_rank:
            yield Doubt(True, f"rank {rank}; at most {self.max_rank}", "rank")
        first = _input(use, 0)
        if first is not None and first.shape is not None and len(first.shape) < self.min_rank:
            yield Doubt(True, f"rank {len(first.shape)}; at least {self.min_rank}", "rank")
        batch = first.shape[0] if first is not None and first.shape is not None and len(first.shape) > 1 else None
        if self.batch is not None and batch not in (self.batch, None):
            yield Doubt(True, f"batch {batch}; allowed: {self.batch}", "batch")
        if self.static_shape and any(None in shape for shape in shapes):
            yield Doubt(True, "a dimension is dynamic", "dynamic")
        if len(shapes) < len(tensors):
            yield Doubt(False, "the model does not give a rank", "rank")


def _input(use: Use, position: int) -> Tensor | None:
    return use.inputs[position] if position < len(use.inputs) else None


def _listed(allowed: Iterable[Scalar]) -> str:
    return ", ".join(map(str, allowed))


def _value_doubts(position: int, allowed: tuple[int | float, ...], tensor: Tensor | None) -> Iterator[Doubt]:
    if tensor is None:
        return
    if tensor.values is None:
        text = "not known" if tensor.constant else "not a constant"
        yield Doubt(not tensor.constant, f"the value of input {position} is {text}", "value")
    elif any(element not in allowed for element in tensor.values):
        yield Doubt(True, f"input {position} is {_listed(tensor.values)}; allowed: {_listed(allowed)}", "value")


def _dtype_doubts(kind: str, allowed: tuple[Dtypes, ...], tensors: tuple[Tensor | None, ...]) -> Iterator[Doubt]:
    for position, tensor in enumerate(tensors):
        types = allowed[min(position, len(allowed) - 1)] if allowed else None
        if types is None or tensor is None or tensor.dtype in types:
            continue
        if tensor.dtype is None:
            yield Doubt(False, f"the model does not give the type of {kind} {position}", "dtype")
        else:
            condition: Condition = "int64" if tensor.dtype == "int64" else "dtype"
            yield Doubt(True, f"{kind} {position} is {tensor.dtype}; allowed: {', '.join(types)}", condition)


class RuleTable(_Data):
    """A runtime's rules. ``newest_opset`` is the last one they hold for, by domain: what is newer is unknown.

    vocabulary: whose operators the rules name; the reader of a file says the same of what it reads. native: the
    runtime's own vocabulary, which ``lowers_to`` speaks and files of its own kind hold; rules whose domain it is name
    its operators, and where an operator has none, the rules that say what becomes it are read backwards.
    native_without: types that a converter would change and the runtime itself does not take. unit: the processor that
    the rules speak of, where another one runs what it does not. max_side, max_channels: of every tensor (N, C, H, W),
    its height and width, and its channels. remedies: the pass that removes the cause where a condition is broken and
    the rule names none. extends: another table whose rules follow the own ones. unverified: why nothing here is known
    for this version; ``supported`` is then said as ``partial``, and ``unsupported`` as ``unknown``.
    """

    name: str = Field(min_length=1)
    runtime: str
    version: str
    source: str
    generated_by: str
    newest_opset: dict[str, PositiveInt] = {}
    vocabulary: str = "onnx"
    native: str = ""
    native_without: tuple[str, ...] = ()
    unit: str = ""
    max_side: PositiveInt | None = None
    max_channels: PositiveInt | None = None
    remedies: dict[Condition, str] = {}
    extends: str | None = None
    unverified: str = ""
    rules: tuple[Rule, ...] = ()

    @cached_property
    def _by_operator(self) -> dict[tuple[str, str], list[Rule]]:
        found: dict[tuple[str, str], list[Rule]] = {}
        for rule in self.rules:
            found.setdefault((rule.domain, rule.op), []).append(rule)
        for rule in self._backwards({op for domain, op in found if domain == self.native}):
            found.setdefault((rule.domain, rule.op), []).append(rule)
        return found

    def _backwards(self, known: set[str]) -> list[Rule]:
        """Rules for the operators of ``native`` but those ``known``, from what says that others become them.

        The most favourable first: that one lowering is costly says nothing against its result. Attributes and opsets
        are the other vocabulary's and left out; a rule that hangs on a constant's value says nothing here.
        """
        sources = [rule for rule in self.rules if rule.lowers_to and not rule.domain and not rule.values]
        found = [_native(rule, self) for rule in sources if self.native and rule.lowers_to not in known]
        return sorted(found, key=lambda rule: (SEVERITY.index(rule.status), bool(rule.reason)))

    def speaks(self, vocabulary: str) -> bool:
        """Whether it judges files that hold operators of ``vocabulary``."""
        return vocabulary in (self.vocabulary, self.native)

    def judge(self, use: Use) -> Verdict:
        """What the table says about one node: the first rule that holds, or why none can be said to."""
        verdict = self._judged(use)
        if verdict.status in ("supported", "partial"):
            large = next(self._oversized(use), None)
            verdict = verdict if large is None else Verdict("unsupported", large, self.source, None, verdict.lowers_to)
        if not self.unverified or verdict.status in ("partial", "unknown"):
            return verdict
        if verdict.status == "supported":
            return verdict._replace(status="partial", reason=self.unverified)
        return self._unknown(f"{self.unverified}: {verdict.reason}")

    def _oversized(self, use: Use) -> Iterator[str]:
        """What is larger than the runtime takes. Judged are tensors of four axes, whose layout is known."""
        for tensor in (*use.inputs, *use.outputs):
            shape = tensor.shape if tensor is not None else None
            if shape is None or len(shape) != 4:
                continue
            for what, size, most in (
                ("channels", shape[1], self.max_channels),
                ("height", shape[2], self.max_side),
                ("width", shape[3], self.max_side),
            ):
                if size is not None and most is not None and size > most:
                    yield f"{what} {size}; at most {most}"

    def _judged(self, use: Use) -> Verdict:
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
                return Verdict(rule.status, rule.reason, rule.source or self.source, remedy, rule.lowers_to)
        if undecided is not None:
            unranked = any(doubt.condition == "rank" for doubt in undecided[1])  # it hangs on a dynamic dimension
            remedy = self.remedies.get("dynamic") if unranked else None
            return self._unknown("; ".join(doubt.text for doubt in undecided[1]), remedy)
        # breaking a rule that says what does not run proves nothing
        limits = [(rule, doubts) for rule, doubts in broken if rule.status != "unsupported"]
        if not limits:
            return self._unknown("no rule for this use of the operator")
        rule, doubts = min(limits, key=lambda limit: len(limit[1]))
        reason = "; ".join(doubt.text for doubt in doubts)
        remedy = self._remedy(rule, doubts)
        return Verdict("unsupported", reason, rule.source or self.source, remedy, rule.lowers_to)

    def _remedy(self, rule: Rule, doubts: list[Doubt]) -> str | None:
        """The passes that remove every cause; None where one cause has none."""
        found = [self.remedies.get(doubt.condition, rule.fixed_by) for doubt in doubts]
        return ", ".join(dict.fromkeys(name for name in found if name)) if all(found) else None

    def _unknown(self, reason: str, remedy: str | None = None) -> Verdict:
        return Verdict("unknown", reason, self.source, remedy)


def _native(rule: Rule, table: RuleTable) -> Rule:
    """A rule about what an operator becomes, as one about that operator itself."""

    def taken(types: tuple[Dtypes, ...]) -> tuple[Dtypes, ...]:
        return tuple(None if t is None else tuple(x for x in t if x not in table.native_without) for t in types)

    changed = {
        "op": rule.lowers_to, "domain": table.native, "lowers_to": "", "attributes": {}, "pattern": "", "since": 1,
        "until": None, "inputs": taken(rule.inputs), "outputs": taken(rule.outputs),
    }  # fmt: skip
    return rule.model_copy(update=changed)


def table_names() -> list[str]:
    """The tables there are."""
    own = sorted(entry.name.removesuffix(".json") for entry in files(__name__).iterdir() if entry.name[-5:] == ".json")
    return [*own, *(name for name in plugins.plugins(plugins.RULES) if name not in own)]


def report_names() -> list[str]:
    """What a user asks for tables by: REPORTS, and plug-ins under their own names."""
    known = {*REPORTS, *REPORTS.values(), *ALIASES}
    return [*REPORTS, *(name for name in plugins.plugins(plugins.RULES) if name not in known)]


@cache
def load_table(name: str) -> RuleTable:
    """A table by name, read once. Raises UnknownName, or EdgeSamDeployError for a file that is not a valid table."""
    if name not in table_names():
        raise UnknownName("rule table", name, table_names())
    entry = files(__name__) / f"{name}.json"
    source = entry if entry.is_file() else plugins.load_plugin(plugins.RULES, name)
    try:
        table = parse_table(source.read_text(encoding="utf-8"))
    except (AttributeError, OSError, ValidationError) as e:
        raise EdgeSamDeployError(f"{name}.json is not a rule table: {e}; generate it again or reinstall") from e
    return table if table.extends is None else _extended(table, load_table(table.extends))


def _extended(table: RuleTable, base: RuleTable) -> RuleTable:
    theirs = (rule.model_copy(update={"source": rule.source or base.source}) for rule in base.rules)
    inherited = {
        "rules": (*table.rules, *theirs),
        "newest_opset": table.newest_opset or base.newest_opset,
        "remedies": {**base.remedies, **table.remedies},
        "vocabulary": base.vocabulary,
        "native": base.native,
    }
    return table.model_copy(update=inherited)


def report_table(name: str) -> RuleTable:
    """The table a user means by ``name``: a report's name, an alias, or a table's own name. Raises UnknownName."""
    known = REPORTS.get(ALIASES.get(name, name), name)
    if known not in table_names():
        raise UnknownName("target", name, [*report_names(), *ALIASES])
    return load_table(known)


def parse_table(text: str) -> RuleTable:
    """A table from its JSON text. Raises pydantic's ValidationError naming the rule and the field."""
    return RuleTable.model_validate_json(text)


def write_table(table: RuleTable, output: Path) -> str:
    """What a probe ends with: the file written, and a line that says so. Raises SystemExit where it cannot be."""
    try:
        output.write_text(dump_table(table), encoding="utf-8")
    except OSError as e:
        raise SystemExit(f"cannot write {output}: {e.strerror}") from e
    return f"{output}: {len(table.rules)} rules for {table.runtime} {table.version}"


def dump_table(table: RuleTable) -> str:
    """JSON with one rule per line, fields at their defaults left out: the same bytes for the same table."""
    header = table.model_dump(exclude={"rules"}, exclude_defaults=True)
    rules = [rule.model_dump(mode="json", exclude_defaults=True) for rule in table.rules]
    lines = [f'"{key}": {json.dumps(value, sort_keys=True)},' for key, value in header.items()]
    body = ",\n".join(json.dumps(rule, separators=(",", ":")) for rule in rules)
    return "{\n" + "\n".join(lines) + '\n"rules": [\n' + body + "\n]}\n"
