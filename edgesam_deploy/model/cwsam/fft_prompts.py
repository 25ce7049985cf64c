"""A prompt per block of the encoder, from the picture's low frequencies and from its patches.

image ── low-pass ── abs ── 16x16 patches ──┐
                                           (+) ── r -> r, GELU (per block) ── r -> D (shared) ── (1, g, g, D)
patches (1, g, g, D) ── re-read ── D -> r ──┘                            r = D // 32
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgesam_deploy.model.cwsam.configs import CwsamEncoderConfig, half_width
from edgesam_deploy.model.vit import PatchEmbed


class LowPass(nn.Module):
    """|low frequencies| of every channel: (B, C, S, S) -> the same, non-negative.

    Kept are the frequencies -line .. line - 1 of each axis. Without its mirror image the lowest one leaves a complex
    picture, of which the real part is taken: dropping it on both sides would be wrong by 1e-2. The reference shifts the
    spectrum's origin to the middle and back, and guards against NaN; for finite pictures both change nothing.
    """

    mask: Tensor

    def __init__(self, size: int, line: int) -> None:
        super().__init__()
        self.size, self.line = size, line
        self.make_constants()

    def make_constants(self) -> None:
        """(S, S), 1 where a frequency is kept; never in a checkpoint."""
        index = torch.arange(self.size)
        kept = (index < self.line) | (index >= self.size - self.line)
        self.register_buffer("mask", (kept[:, None] & kept).float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(image, norm="forward")
        kept: Tensor = torch.fft.ifft2(spectrum * self.mask, norm="forward")
        return kept.real.abs()


class PromptGenerator(nn.Module):
    """Explicit visual prompts (arXiv 2303.10883) as CWSAM has them."""

    def __init__(self, cfg: CwsamEncoderConfig, image_size: int) -> None:
        super().__init__()
        rank = cfg.width // cfg.prompt_scale
        self.shared_mlp = nn.Linear(rank, cfg.width)
        self.embedding_generator = nn.Linear(cfg.width, rank)
        for index in range(cfg.depth):
            self.add_module(f"lightweight_mlp_{index}", nn.Sequential(nn.Linear(rank, rank), nn.GELU()))
        self.prompt_generator = PatchEmbed(rank, cfg.patch)
        self.low_pass = LowPass(image_size, half_width(image_size, cfg.pass_rate, clamp=cfg.clamp_rate))

    def features(self, image: Tensor, patches: Tensor) -> Tensor:
        """What all blocks' prompts are made from: image (1, 3, S, S), patches (1, g, g, D) -> (1, g, g, r)."""
        return self.prompt_generator(self.low_pass(image)) + self.embed(patches)  # type: ignore[no-any-return]

    def embed(self, patches: Tensor) -> Tensor:
        """(1, g, g, D) -> (1, g, g, r), of tokens scrambled as in training.

        The channels-last buffer is read as if it were (D, g g): channel c of token l is its element c g g + l. Reading
        it rightly gives another model.
        """
        height, width, channels = patches.shape[1:]
        tokens = patches.reshape(1, channels, height * width).transpose(1, 2)
        return self.embedding_generator(tokens).reshape(1, height, width, -1)  # type: ignore[no-any-return]

    def forward(self, features: Tensor, block: int) -> Tensor:
        """The prompt of one block, (1, g, g, r) -> (1, g, g, D)."""
        return self.shared_mlp(self.get_submodule(f"lightweight_mlp_{block}")(features))  # type: ignore[no-any-return]
