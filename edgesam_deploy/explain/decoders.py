"""The decoders that are known, whole and in parts: ``Facts -> Export | None``."""

from __future__ import annotations

from edgesam_deploy.explain.export import (
    COORDINATES,
    IOU,
    OWN,
    PADDING,
    Difference,
    Export,
    contrib,
    interface,
    shown,
    side,
    size_option,
    some,
    stability,
    static_points,
    tanh_gelu,
)
from edgesam_deploy.explain.facts import Facts

PROMPT = {"image_embeddings", "point_coords", "point_labels"}
BOXED = PROMPT | {"boxes", "point_valid", "boxes_valid"}
OFFICIAL = PROMPT | {"mask_input", "has_mask_input", "orig_im_size"}

# --- decoders --------------------------------------------------------------------------------------------------------


def edgesam_decoder(facts: Facts) -> Export | None:
    """EdgeSAM's decoder, and the fork's at another size."""
    if set(facts.inputs) != PROMPT or set(facts.outputs) != {"scores", "masks"}:
        return None
    frame = side(facts.inputs["image_embeddings"], 16)
    fork = bool(facts.count("Gelu", "LayerNormalization")) or frame not in (None, 1024)
    points = static_points(facts)
    fixed = None
    if points is not None:
        fixed = Difference(
            "prompts", f"exactly {points} points", "any number",
            "unused points with label -1 are tokens that are attended to: another result than with fewer points; "
            "here empty slots (label -10) are masked out of attention",
        )  # fmt: skip
    scores = stability(facts)
    return Export(
        "EdgeSAM, the fork for NPUs" if fork else "EdgeSAM",
        "mask decoder",
        "export_onnx_model.py CHECKPOINT --decoder" + (" [--decoder-embed-size H W]" if fork else ""),
        (interface(facts), shown(facts, "Gather", "Shape", "OneHot", "Tile", "Greater", "Gelu")),
        some(PADDING, scores, fixed, tanh_gelu(facts), _shapes(facts), contrib(facts)),
        (COORDINATES, "boxes: two points with labels 2 and 3", *(() if scores else (IOU,)), FOUR),
        (f"edgesam-deploy build edge_sam --checkpoint YOUR.pth{size_option(frame)} --io edgesam", OWN),
    )


FOUR = "masks: four logits planes at a quarter of the model frame, mask 0 first; the caller chooses and upsamples"


def _shapes(facts: Facts) -> Difference | None:
    risky = [name for name in ("OneHot", "Tile", "If", "NonZero") if facts.count(name)]
    if not risky:
        return None
    return Difference(
        "operators",
        f"{', '.join(risky)} on shapes that are computed in the graph",
        "does not matter there",
        "TensorRT and Core ML refuse it or fall back; here the decoder is static. edgesam-deploy ops FILE --target all",
    )


def dyt_decoder(facts: Facts) -> Export | None:
    """EdgeSAM-DyT's decoder, plain or HQ."""
    features = {name for name in facts.inputs if name.startswith("interm_embeddings_")}
    if set(facts.inputs) - features != BOXED or not {"scores", "masks"} <= set(facts.outputs):
        return None
    low = side(facts.inputs["image_embeddings"], 4)
    scores = stability(facts)
    hq = wrong = None
    if features:
        hq = Difference(
            "operators", "the HQ branch is computed again for every prompt (62 of 70 GFLOP)", "likewise",
            "19 times the work of the plain decoder per click; here it moves into the encoder as hq_features",
        )  # fmt: skip
        wrong = Difference(
            "scores", "the predicted IoU of mask 3 beside the HQ mask, which belongs to mask 0",
            "returns the score of mask 0", "scores that belong to another mask",
        )  # fmt: skip
    masks = facts.outputs["masks"]
    large = None
    if masks and low and isinstance(masks[-1], int) and masks[-1] > low:
        large = Difference(
            "masks", f"upsampled in the graph to the {masks[-1]} x {masks[-1]} frame, padding included (--upsample)",
            "upsamples, crops the padding, then resizes to the picture",
            "still to be cropped and resized by the caller",
        )  # fmt: skip
    name = "edge_sam_dyt_hq" if features else "edge_sam_dyt"
    frame = side(facts.inputs["image_embeddings"], 16)
    return Export(
        "EdgeSAM-DyT",
        "HQ mask decoder" if features else "mask decoder",
        "export_onnx_model.py CHECKPOINT --decoder" + (" --hq" if features else ""),
        (interface(facts), shown(facts, "NonZero", "If", "ScatterND", "Tanh")),
        some(PADDING, scores or wrong, hq, large, ONE_BOX, _shapes(facts), contrib(facts)),
        (COORDINATES, *(() if scores or features else (IOU,))),
        (f"edgesam-deploy build {name} --checkpoint YOUR.pth{size_option(frame)} --io edgesam-dyt", OWN),
    )


ONE_BOX = Difference(
    "prompts", "points and one box, each dropped by a boolean index when its flag is false", "any of them",
    "a graph whose shapes depend on values; more than one box breaks. Here invalid rows become empty slots",
)  # fmt: skip


def npu_decoder(facts: Facts) -> Export | None:
    """The NPU fork's decoder, and the first part of its split one."""
    if set(facts.inputs) != {"image_embeddings", "point_embedding_pe", "point_labels"}:
        return None
    split = set(facts.outputs) == {"hs", "src"}
    if not split and set(facts.outputs) != {"scores", "masks"}:
        return None
    points = static_points(facts)
    soft = None
    if not split and facts.count("Sigmoid") and facts.count("ReduceSum"):
        soft = Difference(
            "scores", "a smooth stand-in for the stability score (sigmoids of slope 50)",
            "predicts IoU, or counts pixels", "about 1e-3 in each score",
        )  # fmt: skip
    slots = Difference(
        "prompts", f"{points or 'a fixed number of'} points; unused ones carry label -1", "as many as there are",
        "each -1 is a token that is attended to, and the predictor appends exactly one: a click in 5 slots differs "
        "from the predictor's. Here unused slots carry -10, which attention leaves out",
    )  # fmt: skip
    split_option = " --split" if split else ""
    return Export(
        "EdgeSAM, the fork for NPUs",
        "prompt embedding and transformer (part 1 and 2)" if split else "mask decoder",
        "export_part12_npu.py" if split else "export_onnx_model_npu.py CHECKPOINT --decoder [--num-points N]",
        (interface(facts), shown(facts, "Relu", "Slice", "Expand", "ReduceSum")),
        some(slots, soft, tanh_gelu(facts), contrib(facts)),
        (COORDINATES, "positions: sines and cosines computed by the caller from pe_gaussian_matrix.bin", FOUR),
        (f"edgesam-deploy build edge_sam --checkpoint YOUR.pth --target npu{split_option}", OWN),
    )


def npu_parts(facts: Facts) -> Export | None:
    """The three pieces of the fork's mask head."""
    shape = set(facts.inputs), set(facts.outputs)
    known = {
        "upscaling of the image side (part 3a)": ({"src"}, {"upscaled"}),
        "hypernetworks (part 3b)": ({"hs"}, {"hyper_in", "iou_token"}),
        "masks and scores (part 3c)": ({"hyper_in", "upscaled", "iou_token"}, {"scores", "masks"}),
        "masks (part 3c, without the IoU head)": ({"hyper_in", "upscaled"}, {"scores", "masks"}),
    }
    part = next((name for name, interface in known.items() if interface == shape), None)
    if part is None:
        return None
    dummy = None
    if "(part 3c" in part and facts.count("Gemm", "MatMul") < 3:
        dummy = Difference(
            "scores", "a slice of the hypernetworks' output under the name scores", "predicted IoU",
            "no score at all: do not rank masks by it; export again with --with-iou-head, or replace the file",
        )  # fmt: skip
    tokens = Difference(
        "prompts", "made for 5 points", "any number", "another number needs another export of every part"
    )
    return Export(
        "EdgeSAM, the fork for NPUs",
        part,
        "export_part3_split.py",
        (interface(facts), shown(facts, "ConvTranspose", "MatMul", "Gemm")),
        some(dummy, tokens),
        (FOUR,),
        ("edgesam-deploy build edge_sam --checkpoint YOUR.pth --target npu --split --points 5", OWN),
    )


def official_decoder(facts: Facts) -> Export | None:
    """SAM's and HQ-SAM's own decoders."""
    features = {"interm_embeddings"} & set(facts.inputs)
    if set(facts.inputs) - features != OFFICIAL or not {"masks", "iou_predictions", "low_res_masks"} <= set(
        facts.outputs
    ):
        return None
    scores = facts.outputs["iou_predictions"]
    single = bool(scores) and scores[-1] == 1 and not features
    one = " --return-single-mask" if single else ""
    choice = None
    if single:
        choice = Difference(
            "masks", "one mask, chosen by how many points there are: mask 0 above 2, else the best of 1 to 3",
            "returns three (or one) and leaves the choice to the caller",
            "the padding point counts: a box and a click give mask 0. Here the same with --return-single-mask",
        )  # fmt: skip
    hq = None
    if features:
        hq = Difference(
            "masks", "HQ mask alone or added to SAM's, fixed at export (--hq-token-only)", "chosen per call",
            "build with --hq-token-only or --multimask to match the file you have",
        )  # fmt: skip
    quantised = None
    if facts.count("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"):
        quantised = Difference(
            "operators", "weights in 8 bit, activations quantised while it runs (--quantize-out)", "fp32",
            "unmeasured by the script; here every artifact is measured against PyTorch",
        )  # fmt: skip
    family, name = ("HQ-SAM", "sam_hq_vit_b") if features else ("SAM", "vit_b")
    return Export(
        family,
        "mask decoder",
        f"export_onnx_model.py --checkpoint CHECKPOINT --model-type TYPE{one}",
        (interface(facts), shown(facts, "Resize", "Where", "ArgMax", "Greater")),
        some(CALLER_PADS, stability(facts), choice, hq, quantised, tanh_gelu(facts), SIZE_INPUT, contrib(facts)),
        (COORDINATES, "masks: logits at the picture's size, upsampled in two steps as the predictor does"),
        (
            f"edgesam-deploy build {name} --checkpoint YOUR.pth --io sam" + (" --return-single-mask" if single else ""),
            OWN,
        ),
    )


CALLER_PADS = Difference(
    "padding point", "expects it from the caller, as the script's notebook does", "appends it itself",
    "an app that forgets it gets masks that are off; with a box none is appended",
)  # fmt: skip
SIZE_INPUT = Difference(
    "size", "takes the picture's size as a tensor (orig_im_size) that shapes its output",
    "does it outside of the network",
    "a shape that depends on a value: TensorRT's profiles and Core ML do not take it. Without --io masks stay "
    "a quarter of the frame, and the predictor here brings them to the picture",
)  # fmt: skip
