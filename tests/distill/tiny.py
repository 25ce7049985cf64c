"""Recipes so small that an update takes milliseconds."""

from __future__ import annotations

from edgesam_deploy.distill.recipe import merged, parse

ENCODER = {"channels": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "squeeze": [1], "out_channels": 32}
CONFIG = {"image_size": 64, "embed_dim": 32, "image_encoder": ENCODER, "mask_decoder": {"mlp_dim": 32}}


def recipe(root, kind="masks", **changes):
    """A checked recipe over the shared scenes; ``changes`` are tables."""
    losses = {"encoder": {"pixel": 1.0}}.get(kind, {"bce": 5.0, "dice": 5.0, "iou": 1.0})
    tables = {
        "name": "tiny",
        "model": {"name": "edge_sam", "config": CONFIG},
        "data": {"root": str(root), "batch_size": 2, "workers": 0, "max_prompts": 3},
        "objective": {"kind": kind, "multimask": 4, **losses},
        "rates": {"base": 1e-3, "warmup": 1e-5, "minimum": 1e-5, "warmup_epochs": 0.5, "reference_batch": 0},
        "train": {"epochs": 2, "log_every": 1, "freeze": []},
    }
    if kind != "masks":
        tables["teacher"] = {"name": "edge_sam", "config": CONFIG}
    return parse(merged(tables, changes), where="tiny")
