"""Which model a set of tensors belongs to, from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edgesam_deploy.model.checkpoint import listed
from edgesam_deploy.model.configs import RepLayout

Shapes = Mapping[str, tuple[int, ...]]

REPVIT_SIZES = {(48, 26): "m1", (64, 24): "m2", (64, 34): "m3"}  # (stem channels, blocks)
VIT_SIZES = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}  # (width, blocks)
EDGE_SAM = {  # (DyT in the neck, DyT in the decoder, HQ decoder)
    (False, False, False): "edge_sam",
    (True, False, False): "edge_sam_dyt_frozen_mask",
    (True, True, False): "edge_sam_dyt",
    (True, True, True): "edge_sam_dyt_hq",
}
REPVIT_NAMES = {"repvit_m1", "repvit_m2", "repvit_m3", "repvit_m1_dyt"}
EDGE_SAM_NAMES = {*EDGE_SAM.values(), "edge_sam_m2", "edge_sam_m3"}


@dataclass(frozen=True)
class Recognised:
    """Which model a set of tensors belongs to, from names and shapes alone.

    ``model`` is its name in the registry, None where there is none that fits. ``rep_layout`` is how RepViT's depthwise
    pairs are stored: "original" (``conv1.c`` and ``conv1.bn``) or "dyt_fork" (a plain ``conv1`` and an outer ``bn``);
    None for other encoders and for pairs that are folded already. ``prefixed``: the image encoder's names begin with
    ``image_encoder.``.
    """

    model: str | None
    rep_layout: RepLayout | None
    encoder_only: bool
    prefixed: bool
    note: str


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """The model that ``tensors`` (their values are not read) are of, by the features that tell the layouts apart."""
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(name.startswith("mask_decoder.cls_upscaling.") for name in shapes):
        return _recognise_cwsam(shapes)
    prefixed = any(name.startswith("image_encoder.") for name in shapes)
    encoder = _room(shapes, "image_encoder.") if prefixed else shapes
    rest = {name: shape for name, shape in shapes.items() if not name.startswith("image_encoder.")} if prefixed else {}
    for recogniser, key in (
        (_recognise_repvit, "features.0.0.c.weight"),
        (_recognise_vit, "patch_embed.proj.weight"),
        (_recognise_tiny_vit, "patch_embed.seq.0.c.weight"),
    ):
        if key in encoder:
            return recogniser(encoder, rest, prefixed)
    return Recognised(None, None, False, prefixed, _unknown(shapes))


def _recognise_repvit(encoder: Shapes, rest: Shapes, prefixed: bool) -> Recognised:
    size = REPVIT_SIZES.get((_dim(encoder, "features.0.2.c.weight"), _blocks(encoder, "features") - 1))
    decoder = _room(rest, "mask_decoder.")
    layout = _rep_layout(encoder)
    neck = "fused neck" if "fuse_stage2.weight" in encoder else "neck on the last stage alone"
    dyt, hq = "neck.1.alpha" in encoder, "hf_token.weight" in decoder
    stored = f"{layout or 'already folded'} RepVGGDW layout"
    note = f"RepViT {size or 'of unknown size'}, {stored}, {neck}{', DyT' if dyt else ''}"
    if "neck.0.weight" not in encoder:
        note = f"a RepViT {size or ''} backbone without EdgeSAM's neck, as trained on ImageNet"
        return Recognised(None, layout, not rest, prefixed, note)
    if not rest:
        name = f"repvit_{size}{'_dyt' if dyt else ''}"
        note += "; image encoder alone"
        return Recognised(name if name in REPVIT_NAMES else None, layout, True, prefixed, note)
    if not decoder:
        return Recognised(None, layout, False, prefixed, f"{note}; without a mask decoder")
    family = EDGE_SAM.get((dyt, _has_dyt(decoder), hq))
    name = f"{family}{'' if size == 'm1' else f'_{size}'}"
    note += f"; {'DyT' if _has_dyt(decoder) else 'LayerNorm'} {'HQ ' if hq else ''}mask decoder" + _extras(rest)
    return Recognised(name if name in EDGE_SAM_NAMES else None, layout, False, prefixed, note)


def _recognise_vit(encoder: Shapes, rest: Shapes, prefixed: bool) -> Recognised:
    width, blocks = _dim(encoder, "patch_embed.proj.weight"), _blocks(encoder, "blocks")
    name = VIT_SIZES.get((width, blocks))
    hq = "mask_decoder.hf_token.weight" in rest
    note = f"SAM's ViT, width {width}, {blocks} blocks"
    if (grid := _dim(encoder, "pos_embed", 1)) not in (0, 64):
        note += f", for {16 * grid} pixels"
    if not rest:
        return Recognised(name, None, True, prefixed, f"{note}; image encoder alone")
    if not _room(rest, "mask_decoder."):
        return Recognised(None, None, False, prefixed, f"{note}; without a mask decoder")
    note += f"; {'HQ ' if hq else ''}mask decoder" + _extras(rest)
    return Recognised(f"sam_hq_{name}" if hq and name else name, None, False, prefixed, note)


def _recognise_tiny_vit(encoder: Shapes, rest: Shapes, prefixed: bool) -> Recognised:
    if not rest:
        return Recognised("sam_hq_vit_tiny", None, True, prefixed, "TinyViT; image encoder alone")
    if "mask_decoder.hf_token.weight" in rest:
        return Recognised("sam_hq_vit_tiny", None, False, prefixed, "TinyViT; HQ mask decoder" + _extras(rest))
    return Recognised(None, None, False, prefixed, "TinyViT with SAM's plain mask decoder, as in MobileSAM")


def _recognise_cwsam(shapes: Shapes) -> Recognised:
    """CWSAM's three families differ in what stands for the MLP: groups of experts, flat experts, or an MLP."""
    encoder, decoder = _room(shapes, "image_encoder."), _room(shapes, "mask_decoder.")
    gate = next((name for name in encoder if name.endswith(".mlp.gate.weight")), None)
    if any(".mlp.group_router." in name for name in encoder):
        name, mlp = "cwsam_hierarchical_moe_10b", "hierarchical experts"
    elif gate is not None:
        name, mlp = "cwsam_moe_3b", f"{_dim(encoder, gate)} experts"
    else:
        name, mlp = "cwsam", "dense MLPs"
    width, blocks = _dim(encoder, "patch_embed.proj.weight"), _blocks(encoder, "blocks")
    # the class head's channels are (class, channel of the upscaled features)
    classes = _dim(decoder, "cls_upscaling.3.bias") // max(1, _dim(decoder, "output_upscaling.3.bias"))
    note = f"CWSAM, width {width}, {blocks} blocks, {mlp}, {classes} classes"
    return Recognised(name, None, False, True, note)


def _room(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _dim(shapes: Shapes, name: str, axis: int = 0) -> int:
    """The size of one axis, 0 where there is none."""
    return (*shapes.get(name, ()), 0, 0)[axis]


def _blocks(encoder: Shapes, name: str) -> int:
    """How many entries the list ``name`` has."""
    indices = [key.split(".")[1] for key in encoder if key.startswith(f"{name}.")]
    return 1 + max((int(i) for i in indices if i.isdecimal() and len(i) < 6), default=-1)


def _rep_layout(encoder: Shapes) -> RepLayout | None:
    if any(name.endswith("token_mixer.0.conv1.c.weight") for name in encoder):
        return "original"
    return "dyt_fork" if any(name.endswith("token_mixer.0.conv1.weight") for name in encoder) else None


def _has_dyt(decoder: Shapes) -> bool:
    return any(name.endswith(".alpha") for name in decoder)


def _extras(rest: Shapes) -> str:
    """What lies beside the model and keeps it from loading as it is."""
    lora = sum(name.endswith(".lora_A") for name in rest)
    heads = any(name.startswith(("rpn_head.", "fpn.")) for name in rest)
    text = f"; {lora} LoRA pairs not merged (weight += lora_B @ lora_A / rank first)" if lora else ""
    return text + ("; with a region-proposal head, which is not part of the model" if heads else "")


def _unknown(shapes: Shapes) -> str:
    rooms = {name.split(".")[0] for name in shapes}
    if "vision_encoder" in rooms:
        return "SAM in the layout of Hugging Face transformers; take the checkpoint that its authors published"
    if rooms & {"iou_token", "mask_tokens", "point_embeddings"} or (
        rooms and rooms <= {"mask_decoder", "prompt_encoder"}
    ):
        return "a mask decoder or prompt encoder without an image encoder"
    return f"no model of this family: the names begin with {listed(sorted(rooms))}"


def wrong_model_message(recognised: Recognised, asked: str, *, source: str | Path = "...") -> str:
    """What to say when a file recognised as one model was given for ``asked``: what it is and how to use it."""
    model, note = recognised.model, recognised.note
    if model is None and recognised.encoder_only:
        return f"this file holds an image encoder alone, of a size that has no name ({note}); {asked} is more than that"
    if model is None:
        return f"this file is not {asked}, nor another model known here: {note}"
    use = f"edgesam-deploy build {model} --checkpoint {source}"
    if recognised.encoder_only and asked not in REPVIT_NAMES:
        alone = f", or build the encoder alone with: {use}" if model in REPVIT_NAMES else ""
        return f"this file holds an image encoder alone ({note}); {asked} needs a full checkpoint{alone}"
    if recognised.encoder_only and model not in REPVIT_NAMES:
        return (
            f"this file holds the image encoder of {model} alone ({note}), not {asked}; there is no model of that kind"
        )
    if model == asked:
        return f"this file looks like {model}, as asked, but does not fit: {note}"
    return f"this file looks like {model} ({note}), not {asked}; build it with: {use}"
