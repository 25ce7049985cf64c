"""CWSAM (ClassWise-SAM-Adapter, arXiv 2401.02326) and its two mixture-of-experts descendants, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from edgesam_deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

ExpertKind = Literal["dense", "token", "groups"]


@dataclass(frozen=True)
class ExpertsConfig:
    """What stands in place of an MLP.

    ``dense``: one MLP. ``token``: ``count`` experts, each token takes its ``chosen`` best (softmax over those).
    ``groups``: ``groups`` of ``count`` experts; each token goes to one group, in which every expert takes the tokens
    that it likes best, int(capacity * tokens / count) of them (expert choice); an expert is cut into ``shards``.
    Blocks before ``first_block`` keep the MLP. ``chosen`` means nothing to groups, ``groups_chosen`` only to them.
    """

    kind: ExpertKind = "dense"
    count: int = 16
    chosen: int = 4
    first_block: int = 28
    groups: int = 3
    capacity: float = 1.5
    shards: int = 4
    groups_chosen: int = 1


@dataclass(frozen=True)
class CwsamEncoderConfig:
    """SAM's ViT with adapters and a prompt per block made from the low-pass filtered picture."""

    width: int = 1280
    depth: int = 32
    heads: int = 16
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    window: int = 14
    patch: int = 16
    mlp_ratio: int = 4
    prompt_scale: int = 32  # the prompt generator works at width // prompt_scale
    pass_rate: float = 0.25  # share of the spectrum that the filter keeps
    clamp_rate: bool = True  # limits the rate to 0.01..0.99 and the half-width to at least 1
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)


@dataclass(frozen=True)
class CwsamDecoderConfig:
    """SAM's mask decoder with a skip connection and a head per class.

    ``experts`` stands in the two-way transformer, ``head_experts`` in the hypernetworks and the IoU head.
    """

    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    downsample: int = 2
    mask_tokens: int = 4
    iou_hidden: int = 256
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    head_experts: ExpertsConfig = field(default_factory=ExpertsConfig)


@dataclass(frozen=True)
class CwsamConfig:
    """One semantic model: picture (1, 3, S, S) to class logits (1, classes, S, S), S = ``image_size`` exactly."""

    image_encoder: CwsamEncoderConfig = field(default_factory=CwsamEncoderConfig)
    mask_decoder: CwsamDecoderConfig = field(default_factory=CwsamDecoderConfig)
    image_size: int = 1024
    embed_dim: int = 256
    classes: int = 33
    class_weights: bool = True  # the checkpoint holds the loss's weights per class
    licence: str = "none given: all rights reserved by its authors"
    description: str = ""


_TOKEN = ExpertsConfig("token", 16, 4, 28)
_PAIRS = ExpertsConfig("token", 16, 2, 0)
_GROUPS = ExpertsConfig("groups", 16, 4, 24)
_MANY = ExpertsConfig("token", 126, 2, 0)

CWSAM_MODELS: dict[str, CwsamConfig] = {
    "cwsam": CwsamConfig(
        CwsamEncoderConfig(768, 12, 12, (2, 5, 8, 11), clamp_rate=False),
        classes=10,
        description="CWSAM, dense ViT-B (arXiv 2401.02326)",
    ),
    "cwsam_moe_3b": CwsamConfig(
        CwsamEncoderConfig(experts=_TOKEN),
        CwsamDecoderConfig(experts=_PAIRS),
        description="CWSAM with 16 token-choice experts: 1.54 billion parameters, whatever its name says",
    ),
    "cwsam_hierarchical_moe_10b": CwsamConfig(
        CwsamEncoderConfig(depth=38, experts=_GROUPS),
        CwsamDecoderConfig(depth=4, experts=_MANY, head_experts=_MANY),
        image_size=512,
        description="CWSAM with 3 groups of 16 expert-choice experts: 6.79 billion parameters",
    ),
}


def half_width(size: int, rate: float, *, clamp: bool) -> int:
    """``line``: of each axis the low-pass filter keeps the frequencies -line .. line - 1."""
    if clamp:
        return max(1, int(math.sqrt(size * size * min(max(rate, 0.01), 0.99)) // 2))
    return int(math.sqrt(size * size * rate) // 2)


# ---------------------------------------------------------------------------------------------------------------------
# The reference's configuration files

_ARGS = {"num_classes": "classes", "inp_size": "image_size"}
_ENCODER = {
    "patch_size": "image_encoder.patch", "embed_dim": "image_encoder.width", "depth": "image_encoder.depth",
    "num_heads": "image_encoder.heads", "mlp_ratio": "image_encoder.mlp_ratio",
    "window_size": "image_encoder.window", "global_attn_indexes": "image_encoder.global_blocks",
    "prompt_embed_dim": "embed_dim",
}  # fmt: skip
_TOKEN_KEYS = {
    "moe_num_experts": "image_encoder.experts.count", "moe_k": "image_encoder.experts.chosen",
    "moe_start_layer_index": "image_encoder.experts.first_block",
}  # fmt: skip
_GROUP_KEYS = {
    "moe_num_expert_groups": "image_encoder.experts.groups", "moe_experts_per_group": "image_encoder.experts.count",
    "moe_k_groups": "image_encoder.experts.groups_chosen", "moe_k_experts": "image_encoder.experts.chosen",
    "moe_start_layer_index": "image_encoder.experts.first_block",
}  # fmt: skip
_TRANSFORMER_KEYS = {
    "transformer_moe_num_experts": "mask_decoder.experts.count", "transformer_moe_k": "mask_decoder.experts.chosen",
}  # fmt: skip
_HEAD_KEYS = {
    "decoder_moe_num_experts": "mask_decoder.head_experts.count", "decoder_moe_k": "mask_decoder.head_experts.chosen",
}  # fmt: skip
_EXPERT_KEYS: dict[ExpertKind, dict[str, str]] = {"dense": {}, "token": _TOKEN_KEYS, "groups": _GROUP_KEYS}
_TRANSFORMER = {
    "depth": "mask_decoder.depth", "mlp_dim": "mask_decoder.mlp_dim", "num_heads": "mask_decoder.heads",
    "attention_downsample_rate": "mask_decoder.downsample",
}  # fmt: skip
_TRANSFORMER_EXPERTS = {"num_experts": "mask_decoder.experts.count", "k": "mask_decoder.experts.chosen"}
_MASK_DECODER = {"iou_head_hidden_dim": "mask_decoder.iou_hidden"}
# in the reference's files, but its code reads none of them: each is fixed there
_IGNORED = {
    "name", "img_size", "scale_factor", "input_type", "freq_nums", "prompt_type", "tuning_stage", "handcrafted_tune",
    "embedding_tune", "adaptor", "moe_noisy_gating", "use_checkpoint",
}  # fmt: skip
_ALWAYS_TRUE = ("qkv_bias", "use_rel_pos")


def from_model_args(config: CwsamConfig, model_args: Mapping[str, Any]) -> CwsamConfig:
    """``config``, a model of the same family, with the sizes of a configuration of the reference.

    ``model_args``: its ``model.args`` (num_classes, inp_size, loss, loss_weight, encoder_mode), or a mapping with that
    under ``model_args`` and, for what the reference fixes in code, ``overrides_of_hardcoded`` with ``enc``, ``tw``,
    ``tw_moe`` and ``md``. Raises UsageError for unknown keys and values that do not fit.
    """
    file: Mapping[str, Any] = model_args if "model_args" in model_args else {"model_args": model_args}
    _refuse_unknown("the file", file, {"model_args", "overrides_of_hardcoded"})
    args, fixed = file["model_args"], file.get("overrides_of_hardcoded", {})
    _refuse_unknown("model_args", args, {*_ARGS, "loss", "loss_weight", "encoder_mode"})
    _refuse_unknown("overrides_of_hardcoded", fixed, {"enc", "tw", "tw_moe", "md"})
    encoder, decoder = config.image_encoder, config.mask_decoder
    transformer = {} if decoder.experts.kind == "dense" else _TRANSFORMER_KEYS
    heads = {} if decoder.head_experts.kind == "dense" else _HEAD_KEYS
    experts = _EXPERT_KEYS[encoder.experts.kind]
    mode = _encoder_mode(args.get("encoder_mode", {}))
    for where, given, known in (
        ("model_args", {key: args[key] for key in args if key in _ARGS}, _ARGS),
        ("encoder_mode", mode, _ENCODER | experts | transformer | heads),
        ("enc", fixed.get("enc", {}), experts),
        ("tw", fixed.get("tw", {}), _TRANSFORMER),
        ("tw_moe", fixed.get("tw_moe", {}), _TRANSFORMER_EXPERTS if transformer else {}),
        ("md", fixed.get("md", {}), _MASK_DECODER),
    ):
        _refuse_unknown(where, given, {*known, *(_IGNORED if where == "encoder_mode" else ())})
        for key in (key for key in given if key in known):
            config = _changed(config, known[key].split("."), given[key], f"{where}.{key}")
    return _tidy(config, args)


def _encoder_mode(mode: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that have one value here, which is checked."""
    _require_mapping("encoder_mode", mode)
    for key in _ALWAYS_TRUE:
        if mode.get(key, True) is not True:
            raise UsageError(f"encoder_mode.{key}={mode[key]!r}: only true is supported")
    width = mode.get("prompt_embed_dim")
    if "out_chans" in mode and width is not None and mode["out_chans"] != width:
        raise UsageError(f"encoder_mode: out_chans {mode['out_chans']} is not prompt_embed_dim {width}")
    named = {"prompt_embed_dim": mode["out_chans"]} if "out_chans" in mode else {}
    return {key: value for key, value in (dict(mode) | named).items() if key not in (*_ALWAYS_TRUE, "out_chans")}


def _tidy(config: CwsamConfig, args: Mapping[str, Any]) -> CwsamConfig:
    """What the reference does silently: no block after the last, no more experts chosen than there are."""
    weights = args.get("loss_weight") if args.get("loss") == "iou" else None
    if weights is not None and (not isinstance(weights, Sequence) or len(weights) != config.classes):
        raise UsageError(f"model_args.loss_weight {weights!r}: must be one number for each of {config.classes} classes")
    encoder = config.image_encoder
    encoder = replace(encoder, global_blocks=tuple(i for i in encoder.global_blocks if i < encoder.depth))
    return _limited(replace(config, image_encoder=encoder, class_weights=weights is not None))


def _limited(config: CwsamConfig) -> CwsamConfig:
    """No token takes more experts than there are."""

    def limit(experts: ExpertsConfig) -> ExpertsConfig:
        chosen = min(experts.chosen, experts.count) if experts.kind == "token" else experts.chosen
        return replace(experts, chosen=chosen)

    encoder, decoder = config.image_encoder, config.mask_decoder
    encoder = replace(encoder, experts=limit(encoder.experts))
    decoder = replace(decoder, experts=limit(decoder.experts), head_experts=limit(decoder.head_experts))
    return replace(config, image_encoder=encoder, mask_decoder=decoder)


def _refuse_unknown(where: str, given: Any, known: set[str]) -> None:
    _require_mapping(where, given)
    for key in given:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known)) or 'none'}")


def _require_mapping(where: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: expected a mapping, got {type(given).__name__}")


def _changed(config: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """``config`` with the field at ``path`` replaced."""
    name, *rest = path
    if rest:
        return replace(config, **{name: _changed(getattr(config, name), rest, value, where)})
    entries = list(value) if name == "global_blocks" and isinstance(value, Sequence) else [value]
    if any(isinstance(entry, bool) or not isinstance(entry, int) for entry in entries):
        raise UsageError(f"{where}={value!r}: expected {'whole numbers' if len(entries) > 1 else 'a whole number'}")
    return replace(config, **{name: tuple(entries) if name == "global_blocks" else value})


# ---------------------------------------------------------------------------------------------------------------------
# What can be built


def check_cwsam(config: CwsamConfig) -> None:
    """Raise UsageError for a configuration that no network can be built from."""
    encoder, decoder = config.image_encoder, config.mask_decoder
    for room, part, names in (
        ("", config, ("image_size", "embed_dim", "classes")),
        ("image_encoder.", encoder, ("width", "depth", "heads", "window", "patch", "mlp_ratio", "prompt_scale")),
        ("mask_decoder.", decoder, ("depth", "heads", "mlp_dim", "downsample", "mask_tokens", "iou_hidden")),
    ):
        for name in names:
            _require(getattr(part, name) > 0, room + name, getattr(part, name), "at least 1")
    size, last = config.image_size, encoder.depth - 1
    _require(size % encoder.patch == 0, "image_size", size, f"a multiple of the patch, {encoder.patch}")
    _require(encoder.width >= encoder.prompt_scale, "width", encoder.width, f"at least {encoder.prompt_scale}")
    _require(encoder.width % encoder.heads == 0, "width", encoder.width, f"a multiple of {encoder.heads} heads")
    blocks = encoder.global_blocks
    _require(all(0 <= block <= last for block in blocks), "global_blocks", blocks, f"from 0 to {last}")
    # the filter's slice of the spectrum must lie inside it; pictures are square, so no aspect ratio can break that
    rate, clamp = encoder.pass_rate, encoder.clamp_rate
    inside = rate > 0 and 2 * half_width(size, rate, clamp=clamp) <= size
    _require(inside, "pass_rate", rate, "above 0, at most 1")
    _require(config.embed_dim % 8 == 0, "embed_dim", config.embed_dim, "a multiple of 8")
    for down in (1, decoder.downsample):
        inner = config.embed_dim // down
        fits = config.embed_dim % down == 0 and inner % decoder.heads == 0
        _require(fits, f"embed_dim / {down}", config.embed_dim / down, f"a multiple of {decoder.heads} heads")
    _check_experts(config)


def _check_experts(config: CwsamConfig) -> None:
    encoder, decoder = config.image_encoder, config.mask_decoder
    for where, experts in (
        ("image_encoder.experts", encoder.experts),
        ("mask_decoder.experts", decoder.experts),
        ("mask_decoder.head_experts", decoder.head_experts),
    ):
        if experts.kind not in ("dense", "token", "groups"):
            raise UsageError(f"{where}.kind {experts.kind!r}: must be dense, token or groups")
        if experts.kind == "groups" and where != "image_encoder.experts":
            raise UsageError(f"{where}.kind 'groups': experts choose tokens in the image encoder only")
        if experts.kind == "token":
            _require(1 <= experts.chosen <= experts.count, f"{where}.chosen", experts.chosen, f"1 to {experts.count}")
    experts, hidden = encoder.experts, encoder.mlp_ratio * encoder.width
    if experts.kind != "dense":
        first = experts.first_block
        _require(0 <= first < encoder.depth, "experts.first_block", first, f"from 0 to {encoder.depth - 1}")
    if experts.kind == "groups":
        for name in ("groups", "count", "shards"):
            _require(getattr(experts, name) > 0, f"experts.{name}", getattr(experts, name), "at least 1")
        _require(experts.capacity > 0, "experts.capacity", experts.capacity, "above 0")
        fits = encoder.width % experts.shards == 0 and hidden % experts.shards == 0
        _require(fits, "width", encoder.width, f"a multiple of {experts.shards} shards")
        chosen = experts.groups_chosen
        _require(chosen == 1, "experts.groups_chosen", chosen, "1: no published model sends a token to more groups")


def _require(fine: bool, name: str, value: Any, must: str) -> None:
    if not fine:
        raise UsageError(f"{name} {value}: must be {must}")


# ---------------------------------------------------------------------------------------------------------------------
# What a checkpoint tells


class _Sizes:
    """Axes of named tensors; ``default`` where there is no such tensor or axis, or it is empty."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def of(self, name: str, axis: int, default: int) -> int:
        return (*self.shapes.get(name, ()), *[0] * 4)[axis] or default

    def first(self, names: Sequence[str], axis: int, default: int) -> int:
        """Of the first of ``names`` that is there."""
        return next((self.of(name, axis, default) for name in names if name in self.shapes), default)

    def entries(self, prefix: str, default: int = 0) -> int:
        """How long the list is whose members' names begin with ``prefix``."""
        rest = {name.removeprefix(prefix).split(".")[0] for name in self.shapes if name.startswith(prefix)}
        return sum(str(index) in rest for index in range(len(rest))) or default


def fitted(config: CwsamConfig, tensors: Mapping[str, Tensor]) -> CwsamConfig:
    """``config`` with every size that the shapes of a checkpoint tell; what is missing there stays as configured.

    Not told, and left: how many experts a token takes (at most as many as there are), the capacity, the decoder's
    heads, the filter. Values are not read, so tensors on the meta device do.
    """
    sizes = _Sizes(tensors)
    encoder = _fitted_encoder(config.image_encoder, sizes)
    dim = sizes.of("image_encoder.neck.0.weight", 0, config.embed_dim)
    decoder = _fitted_decoder(config.mask_decoder, sizes, dim)
    side = sizes.of("image_encoder.pos_embed", 1, config.image_size // encoder.patch)
    maps = sizes.of("mask_decoder.cls_upscaling.3.bias", 0, 0)
    new = replace(
        config, image_encoder=encoder, mask_decoder=decoder, image_size=side * encoder.patch, embed_dim=dim,
        classes=maps // max(1, dim // 8) or config.classes,
        class_weights="criterionBCE.weight" in sizes.shapes if sizes.shapes else config.class_weights,
    )  # fmt: skip
    return _limited(new)


def _fitted_encoder(cfg: CwsamEncoderConfig, sizes: _Sizes) -> CwsamEncoderConfig:
    room = "image_encoder."
    width = sizes.of(f"{room}patch_embed.proj.weight", 0, cfg.width)
    depth = sizes.entries(f"{room}blocks.", cfg.depth)
    rank = sizes.of(f"{room}prompt_generator.embedding_generator.weight", 0, width // cfg.prompt_scale or 1)
    mlps = [f"{room}blocks.{index}.mlp." for index in range(depth)]
    experts, hidden = cfg.experts, sizes.first([f"{mlp}lin1.weight" for mlp in mlps], 0, cfg.mlp_ratio * width)
    kinds = [_kind(sizes, mlp) for mlp in mlps]
    late = next((index for index, kind in enumerate(kinds) if kind not in ("dense", None)), None)
    if late is not None:
        experts, hidden = _fitted_experts(cfg.experts, sizes, mlps[late], hidden)
        experts = replace(experts, first_block=late)
    elif "dense" in kinds:
        experts = replace(cfg.experts, kind="dense")
    window, global_blocks = _fitted_windows(cfg, sizes, depth)
    return replace(
        cfg, width=width, depth=depth, global_blocks=global_blocks, window=window, experts=experts,
        heads=width // sizes.of(f"{room}blocks.0.attn.rel_pos_h", 1, width // cfg.heads or 1) or cfg.heads,
        patch=sizes.of(f"{room}patch_embed.proj.weight", 2, cfg.patch),
        mlp_ratio=hidden // width or cfg.mlp_ratio,
        prompt_scale=cfg.prompt_scale if width // cfg.prompt_scale == rank else width // rank or cfg.prompt_scale,
    )  # fmt: skip


def _fitted_windows(cfg: CwsamEncoderConfig, sizes: _Sizes, depth: int) -> tuple[int, tuple[int, ...]]:
    """Window and global blocks, from the tables of relative positions: 2 side - 1 rows for a side of tokens."""
    grid = sizes.of("image_encoder.pos_embed", 1, 0)
    tables = [sizes.of(f"image_encoder.blocks.{index}.attn.rel_pos_h", 0, 0) for index in range(depth)]
    whole = {index for index, rows in enumerate(tables) if rows == 2 * grid - 1}
    if not grid or not all(tables) or (len(whole) == depth and cfg.window == grid):  # a window of the whole grid
        return cfg.window, tuple(index for index in cfg.global_blocks if index < depth)
    windows = [(rows + 1) // 2 for index, rows in enumerate(tables) if index not in whole]
    return next(iter(windows), cfg.window), tuple(sorted(whole))


def _fitted_decoder(cfg: CwsamDecoderConfig, sizes: _Sizes, dim: int) -> CwsamDecoderConfig:
    room = "mask_decoder."
    layer, head = f"{room}transformer.layers.0.", f"{room}iou_prediction_head."
    experts, mlp_dim = _fitted_experts(cfg.experts, sizes, f"{layer}mlp.", cfg.mlp_dim)
    head_experts, iou_hidden = _fitted_experts(cfg.head_experts, sizes, f"{head}0.", cfg.iou_hidden)
    if f"{head}layers.0.weight" in sizes.shapes:
        head_experts = replace(head_experts, kind="dense")
        iou_hidden = sizes.of(f"{head}layers.0.weight", 0, iou_hidden)
    inner = sizes.of(f"{layer}cross_attn_token_to_image.q_proj.weight", 0, 0)
    return replace(
        cfg, experts=experts, head_experts=head_experts, mlp_dim=mlp_dim, iou_hidden=iou_hidden,
        depth=sizes.entries(f"{room}transformer.layers.", cfg.depth),
        downsample=dim // inner or cfg.downsample if inner else cfg.downsample,
        mask_tokens=sizes.of(f"{room}mask_tokens.weight", 0, cfg.mask_tokens),
    )  # fmt: skip


def _kind(sizes: _Sizes, mlp: str) -> ExpertKind | None:
    """What stands at ``mlp``; None where nothing known does."""
    names: tuple[tuple[str, ExpertKind], ...] = (
        ("group_router.weight", "groups"), ("gate.weight", "token"), ("lin1.weight", "dense")
    )  # fmt: skip
    return next((kind for name, kind in names if mlp + name in sizes.shapes), None)


def _fitted_experts(cfg: ExpertsConfig, sizes: _Sizes, mlp: str, hidden: int) -> tuple[ExpertsConfig, int]:
    """The experts at ``mlp`` and the width inside one of them (of all its shards together)."""
    kind = _kind(sizes, mlp)
    if kind is None:
        return cfg, hidden
    if kind == "dense":
        return replace(cfg, kind=kind), sizes.of(f"{mlp}lin1.weight", 0, hidden)
    if kind == "token":
        count = sizes.of(f"{mlp}gate.weight", 0, cfg.count)
        return replace(cfg, kind=kind, count=count), sizes.of(f"{mlp}experts.0.0.weight", 0, hidden)
    group = f"{mlp}expert_groups.0."
    shards = sizes.entries(f"{group}expert_shards.0.", cfg.shards)
    new = replace(
        cfg, kind=kind, shards=shards, groups=sizes.of(f"{mlp}group_router.weight", 0, cfg.groups),
        count=sizes.of(f"{group}router.weight", 0, cfg.count),
    )  # fmt: skip
    return new, shards * sizes.of(f"{group}expert_shards.0.0.0.weight", 0, max(1, hidden // shards))
