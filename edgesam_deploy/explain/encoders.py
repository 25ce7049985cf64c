"""The encoders that are known: ``Facts -> Export | None``."""

from __future__ import annotations

from edgesam_deploy.explain.export import (
    OWN,
    Difference,
    Export,
    contrib,
    interface,
    shown,
    side,
    size_option,
    some,
    tanh_gelu,
)
from edgesam_deploy.explain.facts import Facts

# --- encoders --------------------------------------------------------------------------------------------------------


def _bilinear(facts: Facts, *, family: str) -> Difference | None:
    if "linear" not in facts.resizes:
        return None
    return Difference(
        "upsampling",
        "bilinear in the neck, whatever the checkpoint was trained with",
        f"{family} was trained with bicubic, and its PyTorch predictor uses it",
        "embeddings off by 14 % with random weights; here bicubic is two constant matrix products, exact anywhere",
    )


def encoder(facts: Facts) -> Export | None:
    """EdgeSAM, EdgeSAM-DyT and their forks: a convolutional encoder; or a ViT."""
    if set(facts.inputs) != {"image"} or "image_embeddings" not in facts.outputs:
        return None
    shape = facts.inputs["image"]
    frame = side(shape, 1)
    if len(shape) != 4 or shape[1] != 3:
        return None
    if facts.count("Softmax"):
        return _vit_encoder(facts, frame)
    dyt = facts.count("BatchNormalization") >= 10 or (
        facts.count("Tanh") and not facts.count("Sqrt", "LayerNormalization")
    )
    hq = [name for name in facts.outputs if name.startswith("interm_embeddings_")]
    if dyt or hq:
        name = "edge_sam_dyt_hq" if hq else "edge_sam_dyt"
        return Export(
            "EdgeSAM-DyT",
            "image encoder" + (" with the features of the HQ branch" if hq else ""),
            "export_onnx_model.py CHECKPOINT" + (" --hq" if hq else ""),
            (interface(facts), shown(facts, "Conv", "BatchNormalization", "Tanh", "Resize")),
            some(
                _bilinear(facts, family="EdgeSAM-DyT"),
                _unfolded(facts),
                contrib(facts),
            ),
            (NORMALISED,),
            (f"edgesam-deploy build {name} --checkpoint YOUR.pth{size_option(frame)} --io edgesam-dyt", OWN),
        )
    fork = bool(facts.count("Gelu", "LayerNormalization")) or frame not in (None, 1024)
    script = "export_onnx_model.py CHECKPOINT"
    return Export(
        "EdgeSAM, the fork for NPUs" if fork else "EdgeSAM (its fork for NPUs writes the same)",
        "image encoder",
        script + (" [--encoder-input-size S]" if fork else "   or the fork's export_onnx_model_npu.py CHECKPOINT"),
        (interface(facts), shown(facts, "Conv", "Erf", "Gelu", "ReduceMean", "Resize")),
        some(_bilinear(facts, family="EdgeSAM"), tanh_gelu(facts), contrib(facts)),
        (NORMALISED,),
        (f"edgesam-deploy build edge_sam --checkpoint YOUR.pth{size_option(frame)} --io edgesam", OWN),
    )


NORMALISED = "input: RGB, resized, normalised and zero-padded by the caller; --embed-preprocess takes pixels instead"


def _unfolded(facts: Facts) -> Difference | None:
    left = facts.count("BatchNormalization")
    if not left:
        return None
    return Difference(
        "operators",
        f"{left} BatchNormalization nodes that the exporter could not fold",
        "the same numbers",
        "slower only; here they go into the convolutions (edgesam-deploy passes fold_batch_norm)",
    )


def _vit_encoder(facts: Facts, frame: int | None) -> Export:
    return Export(
        "SAM or HQ-SAM with a ViT",
        "image encoder",
        "none of the official scripts (they export the decoder alone); a third party's",
        (interface(facts), shown(facts, "Softmax", "MatMul", "LayerNormalization", "Erf", "Gelu")),
        some(tanh_gelu(facts), contrib(facts)),
        (NORMALISED,),
        (
            f"edgesam-deploy build vit_b --checkpoint YOUR.pth{size_option(frame)} --io sam   (vit_l, vit_h, sam_hq_*)",
            OWN,
        ),
    )
