"""SAM's prompt encoder: points, boxes and masks to embeddings.

Token rows carry sin/cos of a random projection of the position plus a learned vector per label. The label codes
are the contract's, see ``edgesam_deploy.model.prompts``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgesam_deploy.model.layers import LayerNorm2d
from edgesam_deploy.model.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, EMPTY, PADDING


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of positions in [0, 1]^2: (..., 2) -> (..., 2F), sines then cosines."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def encode(self, positions: Tensor) -> Tensor:
        angles = 2 * math.pi * ((2 * positions - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def forward(self, height: int, width: int) -> Tensor:
        """Encoding of the pixel centres of a grid: (2F, height, width)."""
        y = (torch.arange(height, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32) + 0.5) / width
        grid = torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self.encode(grid.to(self.positional_encoding_gaussian_matrix)).permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """Embeds prompts given in pixels of the square model frame of side ``image_size``."""

    def __init__(self, embed_dim: int, image_size: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.embedding_size = (image_size // 16, image_size // 16)
        self.mask_input_size = (image_size // 4, image_size // 4)
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        # the norm and the exact GELU stay in every variant of the family, also where the decoder has DyT
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2), LayerNorm2d(4), nn.GELU(),
            nn.Conv2d(4, 16, 2, 2), LayerNorm2d(16), nn.GELU(),
            nn.Conv2d(16, embed_dim, 1),
        )  # fmt: skip
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def get_dense_pe(self) -> Tensor:
        """Positional encoding of the image tokens, (1, embed_dim, S/16, S/16)."""
        return self.pe_layer(*self.embedding_size)[None]  # type: ignore[no-any-return]

    def embed_slots(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Token rows for slots: coords (B, N, 2) in model-frame pixels, labels (B, N) -> (B, N, embed_dim).

        Labels 2 and 3 give exactly the rows of a box's corners. Nothing is appended. Empty slots (-10) give a zero
        row; keeping it out of attention is ``empty_slot_bias``'s business.
        """
        position = self.pe_layer.encode((coords + 0.5) / self.image_size)
        labels = labels[..., None]
        rows = position * (labels >= 0)  # negative codes have no position
        rows = rows + (labels == PADDING) * self.not_a_point_embed.weight
        for code, embedding in enumerate(self.point_embeddings):
            assert isinstance(embedding, nn.Embedding)
            rows = rows + (labels == code) * embedding.weight
        return rows

    def embed_masks(self, masks: Tensor) -> Tensor:
        """Low-resolution logits (B, 1, S/4, S/4) -> (B, embed_dim, S/16, S/16)."""
        return self.mask_downscaling(masks)  # type: ignore[no-any-return]

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The reference's call: sparse (B, N', embed_dim) and dense (B, embed_dim, S/16, S/16) embeddings.

        points: coordinates (B, N, 2) and labels (B, N); where ``boxes`` is None one padding point is appended, always.
        boxes: (B, 4) as x0, y0, x1, y1. masks: (B, 1, S/4, S/4). Labels 2 and 3 get corner embeddings here too
        (the reference gives them bare positions: noted deviation, T5).
        """
        given = [t.shape[0] for t in (points[0] if points else None, boxes, masks) if t is not None]
        batch = given[0] if given else 1
        rows = []
        if points is not None:
            coords, labels = points
            if boxes is None:
                coords = torch.cat([coords, coords.new_zeros(batch, 1, 2)], dim=1)
                labels = torch.cat([labels, labels.new_full((batch, 1), PADDING)], dim=1)
            rows.append(self.embed_slots(coords, labels))
        if boxes is not None:
            corners = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device=boxes.device).expand(batch, 2)
            rows.append(self.embed_slots(boxes.reshape(batch, 2, 2), corners))
        weight = self.no_mask_embed.weight
        sparse = torch.cat(rows, dim=1) if rows else weight.new_zeros(batch, 0, self.embed_dim)
        dense = weight.reshape(1, -1, 1, 1).expand(batch, -1, *self.embedding_size)
        return sparse, dense if masks is None else self.embed_masks(masks)


def empty_slot_bias(labels: Tensor) -> Tensor:
    """Additive attention bias (B, N): 0 for tokens, -1e4 for empty slots (label -10).

    Token rows meet only as keys of softmax; e^-1e4 is 0 in fp32 and fp16 alike, so every other output is exactly that
    of the graph without the slot. -1e4 also survives fp16, which a -1e9 would not.
    """
    return (labels == EMPTY) * -1e4
