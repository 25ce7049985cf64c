"""Recipes: every value of a training stage in one schema, read from TOML, changed by ``--set``, checked before anything
is loaded.

A file may name another with ``extends``, whose tables it then changes, or hold only ``stages``: names of recipes that
run one after the other. ``{out}`` in a path is the folder of the run, so that a stage finds what an earlier one left.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgesam_deploy.distill.data.sources import Kind
from edgesam_deploy.distill.prompts import PromptKind
from edgesam_deploy.distill.synthetic import Style
from edgesam_deploy.errors import UnknownName, UsageError

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=100)]
Part = Literal["image_encoder", "prompt_encoder", "mask_decoder"]
Fault = Literal[
    "warmup_drop", "bce_on_probabilities", "channel_mean", "query_over_tokens", "iou_with_masks_only", "corner_points",
    "repeated_prompts", "fewer_points",
]  # fmt: skip


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Model(Section):
    """Which network, and where its numbers come from.

    config: sizes that have no name, as for ``load``. checkpoint: of the whole model, or of an image encoder alone, as
    phase 1 leaves it. from_teacher: prompt encoder and mask decoder start as the teacher's, where they fit. lora: rank
    of the pairs beside q and v of the mask decoder's attentions (arXiv 2106.09685), of which alone it then learns; the
    saved model has them merged; 0 for none.
    """

    name: str = "edge_sam"
    config: dict[str, Any] = {}
    checkpoint: str | None = None
    from_teacher: bool = False
    lora: int = Field(default=0, ge=0, le=256)


class Teacher(Section):
    """What is imitated: a model of the family, and the folder of its embeddings where they were written before."""

    name: str
    config: dict[str, Any] = {}
    checkpoint: str | None = None
    embeddings: str | None = None


class Synthetic(Section):
    """Scenes that are made where ``root`` holds none yet. most, smallest, rings, covered: ``synthetic.Style``."""

    count: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)
    size: int = Field(default=256, ge=32, le=4096)
    most: int = Field(default=9, ge=1, le=64)
    smallest: float = Field(default=0.07, ge=0.01, le=0.33)
    rings: float = Field(default=0.15, ge=0, le=1)
    covered: float = Field(default=1, ge=0, le=1)

    @property
    def style(self) -> Style:
        return Style(self.most, self.smallest, self.rings, self.covered)


class Data(Section):
    """What is looked at. samples: at most so many, of the sorted list. max_prompts: objects per picture and update.
    filter_by_area: boxes between two areas in model-frame pixels; 0 for no bound. ignored_label: what stands for "does
    not count" in label pictures.
    """

    root: str
    layout: Kind = "sa1b"
    split: str = "train"
    synthetic: Synthetic | None = None
    samples: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1, le=4096)
    workers: int = Field(default=2, ge=0, le=256)
    max_prompts: int = Field(default=8, ge=1, le=1024)
    filter_by_area: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0, 0)
    mask_nms: float = Field(default=1.0, gt=0, le=1)
    box_jitter: bool = False
    augment: Literal["none", "flip_scale"] = "none"
    ignored_label: int = Field(default=255, ge=-1, le=65535)


class Objective(Section):
    """What is minimised.

    kind: ``encoder`` imitates the teacher's embeddings (phase 1), ``decoder`` its masks with prompts in the loop (phase
    2), ``masks`` learns the data set's own masks, with no teacher; ``hq`` learns them with an HQ branch, with a teacher
    or without; ``semantic`` learns classes by ``cross_entropy``. A loss counts if its weight is above 0. iterations:
    decodings per update, each with a further point; multimask: masks asked of a point prompt.
    """

    kind: Literal["encoder", "decoder", "masks", "hq", "semantic"]
    pixel: Weight = 0
    channel: Weight = 0
    correlation: Weight = 0
    bce: Weight = 0
    focal: Weight = 0
    dice: Weight = 0
    iou: Weight = 0
    attention: Weight = 0
    feature: Weight = 0
    query: Weight = 0
    cross_entropy: Weight = 0
    class_weights: tuple[Weight, ...] = ()  # one per class; all 1 where there are none
    prompts: tuple[PromptKind, ...] = Field(default=("box", "point"), min_length=1)
    points_from_masks: bool = False
    iterations: int = Field(default=1, ge=1, le=32)
    points_per_iteration: int = Field(default=1, ge=1, le=64)
    iterate_on_box: bool = False
    multimask: Literal[1, 3, 4] = 1
    multimask_on_box: bool = False
    point_rend: bool = False
    soft_targets: bool = False
    temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _minimises_something(self) -> Self:
        of_encoder, of_masks = ("pixel", "channel", "correlation"), ("bce", "focal", "dice", "iou")
        of_decoder = (*of_masks, "attention", "feature", "query")
        usable = {
            "encoder": of_encoder,
            "decoder": (*of_encoder, *of_decoder),
            "masks": of_masks,
            "hq": ("bce", "focal", "dice"),
            "semantic": ("cross_entropy",),
        }[self.kind]
        set_here = {name for name in (*of_encoder, *of_decoder, "cross_entropy") if getattr(self, name) > 0}
        if strangers := set_here - set(usable):
            raise ValueError(f"{', '.join(sorted(strangers))}: no loss of kind {self.kind!r}; has: {', '.join(usable)}")
        if not set_here:
            raise ValueError(f"no loss has a weight above 0; kind {self.kind!r} has: {', '.join(usable)}")
        if self.point_rend and (self.multimask != 1 or self.multimask_on_box):
            raise ValueError("point_rend samples one mask; set multimask = 1")
        return self


class Optimizer(Section):
    """AdamW or SGD with Nesterov momentum. weight_decay: of what has two dimensions or more and is no bias."""

    name: Literal["adamw", "sgd"] = "adamw"
    eps: float = Field(default=1e-8, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0, le=1)
    clip_grad: float = Field(default=5.0, ge=0)  # norm of all gradients; 0 for none


class Rates(Section):
    """Learning rates for ``reference_batch`` pictures per update; what is applied is in proportion to the batch.
    ``reference_batch`` 0 applies them as they stand.
    """

    kind: Literal["cosine", "linear", "step"] = "cosine"
    base: Rate
    minimum: float = Field(default=5e-6, ge=0, lt=100)
    warmup: float = Field(default=5e-7, ge=0, lt=100)
    warmup_epochs: float = Field(default=0, ge=0)
    reference_batch: int = Field(default=512, ge=0)
    decay_epochs: float = Field(default=30, gt=0)
    decay_rate: float = Field(default=0.1, gt=0, le=1)


class Train(Section):
    """How long and how. ema: decay of a running mean of the weights, which is what is then saved as the model; 0 for
    none. freeze: parts, or prefixes of parameter names, that stay as they are; unfreeze: what learns in them
    nevertheless, by a piece of its name. frozen_statistics: batch norms use their running statistics. quantize_encoder:
    the encoder's convolutions see 8-bit weights and inputs, so that they learn to live with int8. check_ranges_every:
    updates between two looks at what fp16 would break; 0 for none. wandb: project of Weights & Biases; empty for none.
    keep: checkpoints beside the last.
    """

    epochs: int = Field(default=1, ge=1, le=100_000)
    accumulation: int = Field(default=1, ge=1, le=4096)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float = Field(default=0, ge=0, lt=1)
    activation_checkpointing: bool = False
    sync_batch_norm: bool = True
    freeze: tuple[str, ...] = ("prompt_encoder",)
    unfreeze: tuple[str, ...] = ()
    frozen_statistics: bool = False
    quantize_encoder: bool = False
    check_ranges_every: int = Field(default=0, ge=0)
    wandb: str = ""
    save_every: int = Field(default=1, ge=1)  # epochs
    save_every_updates: int = Field(default=0, ge=0)  # besides; 0 for none: an epoch of SA-1B takes days
    keep: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


class Recipe(Section):
    """One training stage."""

    name: str
    description: str = ""
    model: Model = Model()
    teacher: Teacher | None = None
    data: Data
    objective: Objective
    optimizer: Optimizer = Optimizer()
    rates: Rates
    train: Train = Train()
    reference_faults: tuple[Fault, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kind = self.objective.kind
        if (self.teacher is None and kind in ("encoder", "decoder")) or (
            self.teacher and kind in ("masks", "semantic")
        ):
            want = "learns from the data set alone; leave the teacher out" if self.teacher else "needs a [teacher]"
            raise ValueError(f"objective.kind {self.objective.kind!r} {want}")
        if self.rates.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"rates.warmup_epochs {self.rates.warmup_epochs:g} is more than the {self.train.epochs} of train.epochs"
            )
        if self.rates.minimum > self.rates.base or self.rates.warmup > self.rates.base:
            raise ValueError("rates.minimum and rates.warmup must not exceed rates.base")
        if (kind == "semantic") != (self.data.layout == "semantic"):
            raise ValueError(f"objective.kind {kind!r} does not go with data.layout {self.data.layout!r}")
        if self.train.quantize_encoder and self.train.activation_checkpointing:
            raise ValueError("quantize_encoder counts what it sees, activation_checkpointing shows it twice; take one")
        if self.model.from_teacher and self.teacher is None:
            raise ValueError("model.from_teacher needs a [teacher]")
        if "bce_on_probabilities" in self.reference_faults and self.train.precision == "fp16":
            raise ValueError("bce_on_probabilities does not survive fp16; use bf16 or fp32, or leave the fault out")
        return self


def built_in() -> dict[str, Path]:
    """The recipes that come along, by name."""
    folder = Path(str(files("edgesam_deploy.distill") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_stages(name: str, changes: Sequence[str] = (), *, out: Path | None = None) -> list[Recipe]:
    """The stages of a recipe: a built-in name, or a .toml, or the reference's .yaml.

    changes: ``a.b=c``, applied to every stage. out: what ``{out}`` stands for. Raises UnknownName, and UsageError
    naming file, key and value.
    """
    path = _found(name)
    tables = _yacs(path) if path.suffix in (".yaml", ".yml") else _tables(path, ())
    if "stages" not in tables:
        return [_stage(path.stem, tables, changes, out)]
    listed = tables["stages"]
    if set(tables) - {"stages", "description"} or not isinstance(listed, list) or not listed:
        raise UsageError(f"{path}: a recipe with stages holds their names and a description, nothing else")
    stages = []
    for entry in listed:
        file = _found(str(entry), beside=path.parent)
        stages.append(_stage(file.stem, _tables(file, ()), changes, out))
    return stages


def _found(name: str, beside: Path | None = None) -> Path:
    if Path(name).suffix in (".toml", ".yaml", ".yml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"{path}: no such recipe file")
        return path
    if beside is not None and (beside / f"{name}.toml").is_file():
        return beside / f"{name}.toml"
    known = built_in()
    if name not in known:
        raise UnknownName("recipe", name, known)
    return known[name]


def _tables(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A TOML file over the one that it extends."""
    if path.resolve() in seen:
        raise UsageError(f"{path}: extends itself, by way of {seen[-1].name}")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: not readable as TOML: {e}") from e
    base = tables.pop("extends", None)
    if base is None:
        return tables
    return merged(_tables(_found(str(base), beside=path.parent), (*seen, path.resolve())), tables)


def _yacs(path: Path) -> dict[str, Any]:
    from edgesam_deploy.distill.yacs import import_yacs

    return import_yacs(path)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _stage(name: str, tables: Mapping[str, Any], changes: Sequence[str], out: Path | None) -> Recipe:
    for change in changes:
        tables = merged(tables, _change(change))
    if out is not None:
        tables = _with_out(tables, str(out))
    return parse({"name": name, **tables}, where=name)


def _change(text: str) -> dict[str, Any]:
    """``a.b=c`` as nested tables; c is a TOML value, or else the text itself."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"--set {text}: must be section.key=value")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    assert isinstance(parsed, dict)
    return parsed


def _with_out(value: Any, out: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_out(entry, out) for key, entry in value.items()}
    return value.replace("{out}", out) if isinstance(value, str) else value


def parse(tables: Mapping[str, Any], *, where: str) -> Recipe:
    """Tables as a checked recipe. Raises UsageError with one line per fault."""
    try:
        return Recipe.model_validate(tables)
    except ValidationError as e:
        lines = [_fault(error) for error in e.errors()]
        raise UsageError(f"recipe {where}: " + "; ".join(lines)) from e


def _fault(error: Any) -> str:
    """One of pydantic's errors in this project's words."""
    place = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in error["loc"][:-1]:
            section = _section(section, str(part))
        known = list(section.model_fields)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{place}: no such key; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")
    said = str(error["msg"]).removeprefix("Value error, ")
    got = "" if isinstance(error["input"], Mapping) else f", got {error['input']!r}"
    return f"{place}: {said[0].lower()}{said[1:]}{got}"


def _section(section: Any, name: str) -> Any:
    annotation = section.model_fields[name].annotation
    return next((t for t in getattr(annotation, "__args__", ()) if isinstance(t, type)), annotation)
