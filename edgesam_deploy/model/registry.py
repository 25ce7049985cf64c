"""From a name to a model: configuration, checkpoint or seed, strict loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.checkpoint import Checkpoint, read_checkpoint
from edgesam_deploy.model.configs import ALIASES, MODELS, SamConfig, check, model_config, override
from edgesam_deploy.model.fetch import resolve
from edgesam_deploy.model.layouts import recognise, wrong_model_message
from edgesam_deploy.model.sam import Sam, Weights
from edgesam_deploy.model.seeded import seeded_state
from edgesam_deploy.model.strict import load_strict


def configured(
    name: str, *, upsample: str | None = None, gelu: str | None = None, config: Mapping[str, Any] | None = None
) -> SamConfig:
    """The configuration of ``name`` with the caller's changes. Raises UnknownName or UsageError."""
    cfg: SamConfig = override(model_config(name), config or {})
    for option, value, allowed in (("upsample", upsample, ("bicubic", "bilinear")), ("gelu", gelu, ("erf", "tanh"))):
        if value is not None and value not in allowed:
            raise UsageError(f"{option}={value!r}: must be {' or '.join(allowed)}")
    if upsample:
        cfg = override(cfg, {"image_encoder": {"upsample": upsample}})
    if gelu:
        cfg = override(cfg, {"image_encoder": {"gelu": gelu}})
        if cfg.mask_decoder is not None:
            cfg = override(cfg, {"mask_decoder": {"gelu": gelu}})
    check(cfg)
    return cfg


def load(
    name: str,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    upsample: str = "bicubic",
    gelu: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Sam:
    """A model of the family in ``eval`` mode, on the CPU, in float32.

    checkpoint: a path, or a name of ``edgesam-deploy fetch --list``; without one the weights are drawn from ``seed``
    (default 0) and everything built from the model says so. upsample: how the neck enlarges its coarse features;
    bicubic is what EdgeSAM was trained with. gelu: ``erf`` or ``tanh`` instead of the model's own. config: field
    values for sizes that have no name, e.g. ``{"image_size": 512}``.

    Raises UnknownName, UsageError, CheckpointError (not loadable, or of another model), MissingToolkit (a name that
    cannot be downloaded here).
    """
    if checkpoint is not None and seed is not None:
        raise UsageError("give a checkpoint or a seed, not both")
    cfg = configured(name, upsample=upsample, gelu=gelu, config=config)
    name = ALIASES.get(name, name)
    if checkpoint is None:
        model = _empty(cfg, name)
        seed = 0 if seed is None else seed
        shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
        load_strict(model, seeded_state(shapes, seed), where=f"seed {seed}")
        model.weights = Weights("seeded", seed=seed)
        return model
    path = resolve(str(checkpoint))
    file = read_checkpoint(path)
    tensors, cfg = _fitted(file, name, cfg)
    model = _empty(cfg, name)
    load_strict(model, tensors, where=str(path))
    model.weights = Weights("checkpoint", path.name, file.sha256, notes=file.notes)
    return model


def _empty(cfg: SamConfig, name: str) -> Sam:
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        model = Sam(cfg, name)
    model = model.to_empty(device="cpu").eval()
    model.set_pixel_statistics()
    return model


def _fitted(file: Checkpoint, name: str, cfg: SamConfig) -> tuple[dict[str, Tensor], SamConfig]:
    """The checkpoint's tensors under this model's names, and the configuration in the checkpoint's own layout.

    Raises CheckpointError naming the model that would fit when it is another one's.
    """
    found = recognise(file.tensors)
    tensors = dict(file.tensors)
    if found.model is not None and found.encoder_only != (cfg.mask_decoder is None):
        raise CheckpointError(f"{file.source}: {wrong_model_message(found, name, source=file.source)}")
    if found.model is not None and not found.encoder_only and _family(found.model) != _family(name):
        raise CheckpointError(f"{file.source}: {wrong_model_message(found, name, source=file.source)}")
    if found.encoder_only and not found.prefixed:
        tensors = {f"image_encoder.{key}": value for key, value in tensors.items()}
    if found.rep_layout is not None:
        cfg = replace(cfg, image_encoder=replace(cfg.image_encoder, rep_layout=found.rep_layout))
    return tensors, cfg


def _family(name: str) -> str:
    return "edge_sam" if name in ("edge_sam", "edge_sam_m2", "edge_sam_m3") else name


class _ModelRegistry(Mapping[str, Callable[..., Sam]]):
    """``sam_model_registry[name](checkpoint=...)``, the call that people's code has."""

    def __getitem__(self, name: str) -> Callable[..., Sam]:
        model_config(name)

        def build(checkpoint: str | Path | None = None, **options: Any) -> Sam:
            return load(name, checkpoint, **options)

        return build

    def __iter__(self) -> Iterator[str]:
        return iter([*MODELS, *ALIASES])

    def __len__(self) -> int:
        return len(MODELS) + len(ALIASES)


sam_model_registry = _ModelRegistry()
