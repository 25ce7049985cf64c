"""The reference's YACS configurations (YAML, ``BASE`` merging) as recipes of this project.

Every key of its tree is known here: it becomes a value of a recipe, or it is one of ``WITHOUT_EFFECT``, each with its
reason. A key that is in neither is an error, for a value that silently does nothing is worse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgesam_deploy.errors import UsageError
from edgesam_deploy.toolkits import require

# key of the reference -> key here, where the value stays what it is
SAME = {
    "DATA.BATCH_SIZE": "data.batch_size", "DATA.NUM_WORKERS": "data.workers", "DATA.DATA_PATH": "data.root",
    "DATA.BOX_JITTER": "data.box_jitter", "DATA.MASK_NMS": "data.mask_nms",
    "DISTILL.MAX_ALLOWED_PROMPTS": "data.max_prompts",
    "DISTILL.DECODE_ITERS": "objective.iterations",
    "DISTILL.POINTS_PER_REFINE_ITER": "objective.points_per_iteration",
    "DISTILL.ITER_ON_BOX": "objective.iterate_on_box", "DISTILL.MULTIMASK_OUTPUT": "objective.multimask",
    "DISTILL.MULTIMASK_ON_BOX": "objective.multimask_on_box",
    "DISTILL.POINT_REND_SAMPLING": "objective.point_rend", "DISTILL.USE_TEACHER_LOGITS": "objective.soft_targets",
    "DISTILL.TEMPERATURE": "objective.temperature", "DISTILL.PROMPT_MASK_TO_POINT": "objective.points_from_masks",
    "DISTILL.INIT_FROM_TEACHER": "model.from_teacher",
    "TRAIN.EPOCHS": "train.epochs", "TRAIN.ACCUMULATION_STEPS": "train.accumulation",
    "TRAIN.USE_CHECKPOINT": "train.activation_checkpointing",
    "TRAIN.EVAL_BN_WHEN_TRAINING": "train.frozen_statistics",
    "TRAIN.BASE_LR": "rates.base", "TRAIN.MIN_LR": "rates.minimum", "TRAIN.WARMUP_LR": "rates.warmup",
    "TRAIN.WARMUP_EPOCHS": "rates.warmup_epochs", "TRAIN.LR_SCHEDULER.NAME": "rates.kind",
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": "rates.decay_epochs", "TRAIN.LR_SCHEDULER.DECAY_RATE": "rates.decay_rate",
    "TRAIN.WEIGHT_DECAY": "optimizer.weight_decay", "TRAIN.CLIP_GRAD": "optimizer.clip_grad",
    "TRAIN.OPTIMIZER.NAME": "optimizer.name", "TRAIN.OPTIMIZER.EPS": "optimizer.eps",
    "TRAIN.OPTIMIZER.BETAS": "optimizer.betas", "TRAIN.OPTIMIZER.MOMENTUM": "optimizer.momentum",
    "SAVE_FREQ": "train.save_every", "PRINT_FREQ": "train.log_every", "SEED": "train.seed",
}  # fmt: skip
# weights of losses, where -1 stands for none
LOSSES = {
    "PIXEL_WISE": "pixel", "CHANNEL_WISE": "channel", "CORRELATION": "correlation", "DECODER_BCE": "bce",
    "DECODER_FOCAL": "focal", "DECODER_DICE": "dice", "DECODER_IOU": "iou", "DECODER_ATTN": "attention",
    "DECODER_FEAT": "feature", "DECODER_QUERY": "query",
}  # fmt: skip
OF_ENCODER = ("pixel", "channel", "correlation")
LAYOUTS = {"sa1b": "sa1b", "coco": "coco", "lvis": "lvis", "cocofied_lvis": "lvis_cocofied"}
ENCODERS = {
    "rep_vit_m1": "m1", "rep_vit_m2": "m2", "rep_vit_m3": "m3", "rep_vit_m1_dyt": "m1_dyt",
}  # fmt: skip
# keys that the translation reads by itself
READ = {
    "BASE", "DATA.DATASET", "DATA.FILTER_BY_AREA", "DATA.NUM_SAMPLES", "DATA.IMG_SIZE", "MODEL.TYPE", "MODEL.NAME",
    "MODEL.PRETRAINED", "MODEL.MASK_HQ", "DISTILL.TEACHER_EMBED_PATH", "DISTILL.ENCODER_ONLY", "DISTILL.FUSE",
    "DISTILL.PROMPT_TYPE", "DISTILL.FREEZE_IMAGE_ENCODER", "DISTILL.FREEZE_PROMPT_ENCODER",
    "DISTILL.FREEZE_MASK_DECODER", "DISTILL.LORA", "DISTILL.UPSAMPLE_MODE", "DISTILL.MASK_DYT", "AMP_ENABLE",
    "DISTILL.INIT_MASK_FROM_TEACHER", "DISTILL.ONLY_TUNE_MASK_DECODER_DYT", "DISTILL.RPN_HEAD",
    *(f"DISTILL.{key}" for key in LOSSES),
}  # fmt: skip
WITHOUT_EFFECT = {
    "DATA.MEAN_AND_STD_TYPE": "SAM's normalisation is the only one", "DATA.INTERPOLATION": "read by nothing",
    "DATA.PIN_MEMORY": "follows the device", "DATA.FNAME_FORMAT": "read by nothing", "DATA.DEBUG": "a debugger's",
    "DATA.LOAD_GT_MASK": "masks are loaded where an objective needs them", "MODEL.NUM_CLASSES": "a classifier's",
    "MODEL.RESUME": "a run resumes from its own folder", "DISTILL.SAVE_TEACHER_EMBED": "the command embed",
    "DISTILL.EMBED_DIM": "of a folder's name", "DISTILL.NO_RAND": "no augmentation depends on the stored seed",
    "DISTILL.PROMPT_BOX_TO_POINT": "read by nothing", "DISTILL.IMAGE_ENCODER_DYT": "said by MODEL.TYPE",
    "DISTILL.GELU_APPROX": "said by the model's name", "TRAIN.START_EPOCH": "a run resumes from its own folder",
    "TRAIN.AUTO_RESUME": "always on", "TRAIN.LAYER_LR_DECAY": "read by nothing",
    "TRAIN.FIND_UNUSED_PARAMETERS": "found out", "TRAIN.ENABLE_DISTILL": "said by the objective",
    "OUTPUT": "--out", "TAG": "--out", "EVAL_MODE": "the command eval", "THROUGHPUT_MODE": "a benchmark",
    "LOCAL_RANK": "torchrun's",
}  # fmt: skip


def import_yacs(path: Path) -> dict[str, Any]:
    """The tables of a recipe from a YAML file of the reference and its defaults. Raises UsageError for unknown keys."""
    defaults = json.loads((files("edgesam_deploy.distill") / "recipes" / "yacs_defaults.json").read_text())
    given = _flat(_with_base(path, ()))
    if unknown := sorted(given.keys() - READ - SAME.keys() - WITHOUT_EFFECT.keys()):
        raise UsageError(f"{path}: no key of the reference's configuration: {', '.join(unknown)}")
    return _tables({**_flat(defaults), **given}, path)


def _with_base(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A YAML file over the files in its ``BASE``, whose paths are relative to it."""
    yaml = require("yaml", "reading the reference's configurations")
    if path.resolve() in seen:
        raise UsageError(f"{path}: BASE leads back to itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UsageError(f"{path}: not readable as YAML: {e}") from e
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a configuration: a mapping of keys is expected")
    from edgesam_deploy.distill.recipe import merged

    result: dict[str, Any] = {}
    for base in content.pop("BASE", None) or []:
        if base:
            result = merged(result, _with_base(path.parent / base, (*seen, path.resolve())))
    return merged(result, content)


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{before}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _tables(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    tables: dict[str, dict[str, Any]] = {
        name: {} for name in ("model", "teacher", "data", "objective", "rates", "optimizer", "train")
    }
    for key, place in SAME.items():
        section, _, name = place.partition(".")
        tables[section][name] = values[key]
    distill = {key.removeprefix("DISTILL."): value for key, value in values.items() if key.startswith("DISTILL.")}
    encoder_only = bool(distill["ENCODER_ONLY"])
    losses = {name: max(0.0, float(distill[key])) for key, name in LOSSES.items()}
    objective = tables["objective"]
    objective |= {name: w for name, w in losses.items() if w > 0 and (name in OF_ENCODER or not encoder_only)}
    objective |= {"kind": "encoder" if encoder_only else "decoder", "prompts": list(distill["PROMPT_TYPE"])}
    tables["data"] |= _data(values, path)
    tables["model"] |= _model(values, path)
    tables["model"]["from_teacher"] &= not encoder_only and bool(distill.get("INIT_MASK_FROM_TEACHER", True))
    tables["teacher"] = {"name": "vit_h", "embeddings": distill["TEACHER_EMBED_PATH"] or None}
    if values["MODEL.PRETRAINED"]:
        tables["model"]["checkpoint"] = values["MODEL.PRETRAINED"]
    frozen = [p for p in ("image_encoder", "prompt_encoder", "mask_decoder") if distill[f"FREEZE_{p.upper()}"]]
    tables["train"] |= {
        "freeze": [] if encoder_only else frozen,
        "precision": "fp16" if values["AMP_ENABLE"] else "fp32",
    }
    return tables


def _data(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind, samples, area = (values[f"DATA.{key}"] for key in ("DATASET", "NUM_SAMPLES", "FILTER_BY_AREA"))
    if kind not in LAYOUTS:
        raise UsageError(f"{path}: DATA.DATASET {kind!r}: must be one of {', '.join(LAYOUTS)}")
    found: dict[str, Any] = {"layout": LAYOUTS[kind]}
    if samples > 0:
        found["samples"] = samples
    if area is not None:
        found["filter_by_area"] = [_area(bound, path) for bound in area]
    return found


def _area(bound: Any, path: Path) -> float:
    """A bound of FILTER_BY_AREA: the reference evaluates text as Python, hence "32*32" in its files; products only."""
    try:
        product = 1.0
        for factor in str(bound or 0).split("*"):
            product *= float(factor)
    except ValueError as e:
        raise UsageError(f"{path}: DATA.FILTER_BY_AREA {bound!r}: must be a number or a product of numbers") from e
    return product


def _model(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = values["MODEL.TYPE"]
    if kind not in ENCODERS:
        raise UsageError(f"{path}: MODEL.TYPE {kind!r}: a student is one of {', '.join(ENCODERS)}")
    if values.get("MODEL.MASK_HQ") or values["DISTILL.RPN_HEAD"] != "none":
        raise UsageError(
            f"{path}: MODEL.MASK_HQ and DISTILL.RPN_HEAD: the HQ stage is the recipe edge_sam_dyt_hq, a detector is "
            "not trained here"
        )
    encoder: dict[str, Any] = {}
    if not values["DISTILL.FUSE"]:
        encoder["fuse"] = False
    if values["DISTILL.UPSAMPLE_MODE"] != "bicubic":
        encoder["upsample"] = values["DISTILL.UPSAMPLE_MODE"]
    config: dict[str, Any] = {"image_encoder": encoder} if encoder else {}
    if values["DATA.IMG_SIZE"] != 1024:
        config["image_size"] = values["DATA.IMG_SIZE"]
    short = ENCODERS[kind]
    if values["DISTILL.ENCODER_ONLY"]:
        return {"name": f"repvit_{short}", "config": config}
    dyt = "edge_sam_dyt" if values.get("DISTILL.MASK_DYT") else "edge_sam_dyt_frozen_mask"
    name = {"m1": "edge_sam", "m1_dyt": dyt}.get(short, f"edge_sam_{short}")
    return {"name": name, "config": config, "lora": 16 if values["DISTILL.LORA"] else 0}
