"""The model card that travels in a bundle: README.md with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(content: Mapping[str, Any]) -> str:
    """Markdown for a manifest's content. The same content gives the same bytes."""
    name, target, weights = content["model"]["name"], content["target"], content["weights"]
    seeded = weights["source"] == "seeded"
    origin = f"random, seed {weights['seed']}" if seeded else f"`{weights['checkpoint']}`, sha256 `{weights['sha256']}`"
    tag = "image-segmentation" if content["contract"]["kind"] == "semantic" else "mask-generation"
    warning = "**These weights are random. The masks mean nothing; the artifact shows that the path works.**\n\n"
    return (
        f"---\nlibrary_name: edgesam-deploy\npipeline_tag: {tag}\nlicense: other\n"
        f"license_name: {content['license']!r}\ntags: [segment-anything, {name}, {target}]\n---\n\n"
        f"# {name} for {target}\n\n"
        f"{warning if seeded else ''}"
        f"- weights: {origin}\n- licence of the weights: {content['license']} (`WEIGHTS_LICENSE.md`)\n"
        f"- built by edgesam-deploy {content['edgesam_deploy']}; options, passes and hashes are in `manifest.json`, "
        f"components in `sbom.cdx.json`\n"
        f"- measured against PyTorch: `parity.json`; again at any time: `edgesam-deploy check FOLDER`, with "
        f"`--checkpoint FILE` where it was built from a file of yours\n\n"
        f"{''.join(_part(part, entry) for part, entry in content['parts'].items())}"
        f"## How to feed it\n\n{_rules(content['contract'])}"
    )


def _part(name: str, entry: Mapping[str, Any]) -> str:
    rows = [
        f"| {side} | `{t['name']}` | ({', '.join(map(str, t['shape']))}) | {t['dtype']} | {t['meaning']} |\n"
        for side in ("inputs", "outputs")
        for t in entry[side]
    ]
    head = "|  | name | shape | type | meaning |\n|---|---|---|---|---|\n"
    return f"## `{entry['file']}` ({name})\n\n{head}{''.join(rows)}\n"


def _rules(contract: Mapping[str, Any]) -> str:
    size = contract["image_size"]
    if contract["kind"] == "semantic":
        inside = "inside the artifact" if contract["embed_preprocess"] else "by the caller"
        return (
            f"- Resize to {size} x {size} (bilinear, antialiased, the aspect is not kept); normalise {inside} with "
            f"mean {contract['pixel_mean']} and standard deviation {contract['pixel_std']} of pixels 0..255.\n"
            f"- Larger pictures go through in tiles of {size} x {size}; `edgesam-deploy run` does that.\n"
            f"- One picture per call. The class of a pixel is the largest of its {contract['classes']} logits.\n"
        )
    inside = "inside the encoder" if contract["embed_preprocess"] else "by the caller"
    codes = ", ".join(f"{code} {name.replace('_', ' ')}" for name, code in contract["label_codes"].items())
    return (
        f"- Resize so that the long side is {size} (bilinear, antialiased); normalise {inside} with mean "
        f"{contract['pixel_mean']} and standard deviation {contract['pixel_std']}; then zero-pad right and bottom.\n"
        f"- Points are (x, y) in pixels of that resized picture. Labels: {codes}.\n"
        f"- {contract['padding_point'][0].upper()}{contract['padding_point'][1:]}.\n"
        f"- Masks are logits, {contract['mask_upsampling']}; above {contract['mask_threshold']} is inside.\n"
    )
