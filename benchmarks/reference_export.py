"""The baseline: the same weights exported as the EdgeSAM reference scripts export them.

What those scripts do, written from ``spec/export_semantics.md`` section 1 and the published operator counts: legacy
tracer, opset 11, fp32, the un-merged encoder with a bilinear neck, erf GELU, norms as arithmetic, prompts embedded in
the decoder's graph by comparing labels, shapes read from tensors, the image repeated per prompt. None of it is slowed
down on purpose: ``check_counts`` refuses a file whose operator counts are not the published ones, so that a benchmark
cannot beat a straw man.

``hq_decoder`` is the DyT project's decoder of ``edge_sam_dyt_hq`` (section 4, opset 17): a box beside the points, each
taken or dropped by a boolean index, and the HQ features computed from the encoder's features in every call.

The modules below hold no weights of their own; they run those of our model in the order of the reference.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor, nn

from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.model.configs import intermediate_channels
from edgesam_deploy.model.layers import LayerNorm2d, Mlp
from edgesam_deploy.model.mask_decoder_hq import HqMaskDecoder
from edgesam_deploy.model.prompt_encoder import PositionEmbeddingRandom, PromptEncoder
from edgesam_deploy.model.repvit import RepVit
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.model.transformer import Attention, TwoWayBlock, TwoWayTransformer

Part = Literal["encoder", "decoder", "hq_decoder"]
PARTS: tuple[Part, ...] = ("encoder", "decoder")  # of edge_sam
OPSETS: dict[Part, int] = {"encoder": 11, "decoder": 11, "hq_decoder": 17}
OUTPUTS: dict[Part, list[str]] = {
    "encoder": ["image_embeddings"], "decoder": ["scores", "masks"], "hq_decoder": ["scores", "masks"],
}  # fmt: skip
TOLERANCE = 0.05  # of each count, and of the total: exporters of other torch versions move a few constants
NODES: dict[Part, int] = {"encoder": 484, "decoder": 1038}  # of the HQ decoder only some counts are published
COUNTS: dict[Part, dict[str, int]] = {
    "encoder": {"Conv": 130, "Add": 104, "Constant": 87, "Mul": 66, "Div": 29, "Erf": 27, "ReduceMean": 14,
                "Sigmoid": 10, "Resize": 1},
    "decoder": {"Constant": 240, "Shape": 109, "Gather": 106, "Unsqueeze": 103, "Add": 76, "MatMul": 49, "Cast": 48,
                "Gemm": 15, "Softmax": 7, "Equal": 7, "OneHot": 2, "Tile": 2, "Sin": 2, "Cos": 2, "ConvTranspose": 2,
                "Erf": 2},
    "hq_decoder": {"NonZero": 2, "ScatterND": 4, "If": 4},
}  # fmt: skip


class NotTheReference(EdgeSamDeployError):
    """A baseline whose operator counts are not those of the reference's own export."""


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W) as means, a square and a root."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        normalised = centred / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * normalised + self.bias[:, None, None]


def with_channel_norms(module: nn.Module) -> nn.Module:
    """A copy of ``module`` with every LayerNorm2d as arithmetic."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LayerNorm2d):
                setattr(parent, name, ChannelNorm(child))
    return module


class ReferenceEncoder(nn.Module):
    """image (1, 3, S, S) -> image_embeddings (1, 256, S/16, S/16), the neck bilinear whatever the model asks for."""

    def __init__(self, model: Sam) -> None:
        super().__init__()
        encoder = with_channel_norms(model.image_encoder)
        assert isinstance(encoder, RepVit)
        if encoder.fuse:
            encoder.fuse_stage3.mode = "bilinear"
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image)  # type: ignore[no-any-return]


def attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Multi-head attention (B, T, C) whose heads are split by reshapes that read the tensor's shape."""
    queries, keys, values = (
        _split(projection(x), attention.heads)
        for projection, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    )
    width = queries.shape[-1]
    scores = queries @ keys.permute(0, 1, 3, 2) / math.sqrt(width)
    mixed = torch.softmax(scores, dim=-1) @ values
    batch, heads, tokens, width = mixed.shape
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, heads * width))  # type: ignore[no-any-return]


def _split(x: Tensor, heads: int) -> Tensor:
    batch, tokens, channels = x.shape
    return x.reshape(batch, tokens, heads, channels // heads).transpose(1, 2)


def two_way_block(
    block: TwoWayBlock, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer of the two-way transformer."""
    if block.first:
        tokens = attend(block.self_attn, tokens, tokens, tokens)
    else:
        placed = tokens + token_pe
        tokens = tokens + attend(block.self_attn, placed, placed, tokens)
    tokens = block.norm1(tokens)
    tokens = block.norm2(tokens + attend(block.cross_attn_token_to_image, tokens + token_pe, image + image_pe, image))
    tokens = block.norm3(tokens + block.mlp(tokens))
    back = attend(block.cross_attn_image_to_token, image + image_pe, tokens + token_pe, tokens)
    return tokens, block.norm4(image + back)


def two_way(transformer: TwoWayTransformer, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
    """tokens (B, T, C), image and image_pe (B, C, h, w) -> tokens (B, T, C) and image (B, h w, C)."""
    image, image_pe = (x.flatten(2).permute(0, 2, 1) for x in (image, image_pe))
    token_pe = tokens
    for layer in transformer.layers:
        assert isinstance(layer, TwoWayBlock)
        tokens, image = two_way_block(layer, tokens, image, token_pe, image_pe)
    final = attend(transformer.final_attn_token_to_image, tokens + token_pe, image + image_pe, image)
    return transformer.norm_final_attn(tokens + final), image


def encode_positions(layer: PositionEmbeddingRandom, positions: Tensor) -> Tensor:
    """Random Fourier features of positions in [0, 1]: (..., 2) -> (..., 2F)."""
    angles = 2 * math.pi * ((2 * positions - 1) @ layer.positional_encoding_gaussian_matrix)
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


def dense_positions(encoder: PromptEncoder) -> Tensor:
    """Encoding of the pixel centres, (1, C, h, w), the grid as running sums of ones."""
    height, width = encoder.embedding_size
    ones = torch.ones((height, width), dtype=torch.float32)
    y, x = (ones.cumsum(dim=0) - 0.5) / height, (ones.cumsum(dim=1) - 0.5) / width
    return encode_positions(encoder.pe_layer, torch.stack([x, y], dim=-1)).permute(2, 0, 1).unsqueeze(0)


def embed_points(encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Token rows (1, N, C): positions where the label is not -1, plus one learned row per label."""
    rows = encode_positions(encoder.pe_layer, (coords + 0.5) / encoder.image_size)
    labels = labels.unsqueeze(-1).expand_as(rows)
    rows = rows * (labels != -1)
    rows = rows + encoder.not_a_point_embed.weight * (labels == -1)
    for code, embedding in enumerate(encoder.point_embeddings):
        assert isinstance(embedding, nn.Embedding)
        rows = rows + embedding.weight * (labels == code)
    return rows


def embed_boxes(encoder: PromptEncoder, boxes: Tensor) -> Tensor:
    """Corner rows (1, 2, C) of boxes (1, 1, 4), the learned rows added in place as SAM's prompt encoder does."""
    rows = encode_positions(encoder.pe_layer, (boxes.reshape(-1, 2, 2) + 0.5) / encoder.image_size)
    for corner in (0, 1):
        embedding = encoder.point_embeddings[2 + corner]
        assert isinstance(embedding, nn.Embedding)
        rows[:, corner, :] += embedding.weight
    return rows


class ReferenceDecoder(nn.Module):
    """image_embeddings (1, C, h, w), point_coords (1, N, 2), point_labels (1, N) -> scores (1, 4), masks (1, 4, ..)."""

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.prompts = model.prompt_encoder
        self.decoder = copy.deepcopy(model.mask_decoder)
        self.upscaling = with_channel_norms(model.mask_decoder.output_upscaling)

    def attended(self, image_embeddings: Tensor, own: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens (1, T + N, C) after the transformer, and the image side upscaled (1, C/8, 4 h, 4 w)."""
        dense = self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        tokens = torch.cat([own.unsqueeze(0).expand(sparse.size(0), -1, -1), sparse], dim=1)
        image = torch.repeat_interleave(image_embeddings, tokens.shape[0], dim=0) + dense
        image_pe = torch.repeat_interleave(dense_positions(self.prompts), tokens.shape[0], dim=0)
        batch, channels, height, width = image.shape
        tokens, image = two_way(self.decoder.transformer, tokens, image, image_pe)
        return tokens, self.upscaling(image.transpose(1, 2).view(batch, channels, height, width))

    def hypernetworks(self, tokens: Tensor) -> list[Tensor]:
        """A filter (1, C/8) per mask token."""
        heads: list[Mlp] = list(self.decoder.output_hypernetworks_mlps)  # type: ignore[arg-type]
        return [head(tokens[:, 1 + i, :]) for i, head in enumerate(heads)]

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        decoder = self.decoder
        sparse = embed_points(self.prompts, point_coords, point_labels)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight], dim=0)
        tokens, upscaled = self.attended(image_embeddings, own, sparse)
        masks = filtered(torch.stack(self.hypernetworks(tokens), dim=1), upscaled)
        return decoder.iou_prediction_head(tokens[:, 0, :]), masks


def filtered(hyper: Tensor, features: Tensor) -> Tensor:
    """Masks (1, M, h, w): filters (1, M, C) over features (1, C, h, w)."""
    batch, channels, height, width = features.shape
    return (hyper @ features.view(batch, channels, height * width)).view(batch, -1, height, width)


class ReferenceHqDecoder(ReferenceDecoder):
    """The same with boxes (1, 1, 4), two flags (1, 1) and three features of the encoder -> scores (1, 1), masks
    (1, 1, ..): the HQ mask beside the score of mask 3, which is the reference's choice.
    """

    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        boxes: Tensor,
        point_valid: Tensor,
        boxes_valid: Tensor,
        *intermediate: Tensor,
    ) -> tuple[Tensor, Tensor]:
        decoder = self.decoder
        assert isinstance(decoder, HqMaskDecoder)
        points = embed_points(self.prompts, point_coords, point_labels)
        corners = embed_boxes(self.prompts, boxes)
        sparse = torch.cat([only_valid(points, point_valid), only_valid(corners, boxes_valid)], dim=1)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hf_token.weight], dim=0)
        tokens, upscaled = self.attended(image_embeddings, own, sparse)
        features = decoder.hq_features(image_embeddings, intermediate).repeat(tokens.shape[0], 1, 1, 1)
        sharp = decoder.embedding_maskfeature(upscaled) + features
        hyper = torch.stack([*self.hypernetworks(tokens), decoder.hf_mlp(tokens[:, 5, :])], dim=1)
        masks = torch.cat([filtered(hyper[:, :4], upscaled), filtered(hyper[:, 4:], sharp)], dim=1)
        return decoder.iou_prediction_head(tokens[:, 0, :])[:, -1:], masks[:, 4:]


def only_valid(rows: Tensor, valid: Tensor) -> Tensor:
    """``rows`` (1, N, C), or none of them where ``valid`` (1, 1) is false: as many as the graph finds when it runs."""
    return rows[:, valid[0].tile(rows.shape[1])]


def example_inputs(model: Sam, part: Part, points: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Inputs by name; of the decoder's points the last is SAM's padding point, (0, 0) with label -1."""
    generator = torch.Generator().manual_seed(seed)
    size, side = model.image_size, model.image_size // 16
    if part == "encoder":
        return {"image": torch.randn(1, 3, size, size, generator=generator)}
    coords = torch.rand(1, points, 2, generator=generator) * size
    labels = torch.randint(0, 4, (1, points), generator=generator).float()
    coords[:, -1], labels[:, -1] = 0.0, -1.0
    embeddings = torch.randn(1, model.config.embed_dim, side, side, generator=generator)
    inputs = {"image_embeddings": embeddings, "point_coords": coords, "point_labels": labels}
    if part == "hq_decoder":
        x0, y0, x1, y1 = (torch.rand(4, generator=generator) * size / 2).tolist()
        inputs["boxes"] = torch.tensor([[[x0, y0, x0 + x1, y0 + y1]]])
        # the points and their padding point, no box
        inputs |= {"point_valid": torch.tensor([[True]]), "boxes_valid": torch.tensor([[False]])}
        for i, channels in enumerate(intermediate_channels(model.config.image_encoder)):
            low = size // (4 if i < 2 else 8)
            inputs[f"interm_embeddings_{i}"] = torch.randn(1, channels, low, low, generator=generator)
    return inputs


MODULES: dict[Part, type[nn.Module]] = {
    "encoder": ReferenceEncoder, "decoder": ReferenceDecoder, "hq_decoder": ReferenceHqDecoder,
}  # fmt: skip


def reference_module(model: Sam, part: Part) -> nn.Module:
    """One part of ``model`` as the reference's export wrappers compute it."""
    return MODULES[part](model).eval()


def export_reference(model: Sam, part: Part, path: Path, *, check: bool = True) -> Path:
    """Write ``model``'s part as the reference would and ``check`` that it is what the reference writes: its published
    counts are those of the real size, so small models go unchecked.
    """
    inputs = example_inputs(model, part)
    points = {1: "num_points"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape it reads: that is the reference's form
        torch.onnx.export(
            reference_module(model, part),
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=OPSETS[part],
            input_names=list(inputs),
            output_names=OUTPUTS[part],
            dynamic_axes={} if part == "encoder" else {"point_coords": points, "point_labels": points},
        )
    if check:
        check_counts(path, part)
    return path


def count_operators(path: Path) -> Counter[str]:
    """How often each operator occurs in an ONNX file, constants included."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def check_counts(path: Path, part: Part) -> None:
    """Raise NotTheReference unless ``path`` has the published operator counts of ``part`` within 5 %."""
    counts = count_operators(path)
    found = {"nodes": counts.total(), **{name: counts[name] for name in COUNTS[part]}}
    published = {**({"nodes": NODES[part]} if part in NODES else {}), **COUNTS[part]}
    off = [
        f"{name} {found[name]} instead of {count}"
        for name, count in published.items()
        if abs(found[name] - count) > TOLERANCE * count
    ]
    if off:
        raise NotTheReference(
            f"{path.name} is not what the reference exports: {', '.join(off)}; "
            "compare benchmarks/reference_export.py with the torch version that the baseline was written with"
        )
