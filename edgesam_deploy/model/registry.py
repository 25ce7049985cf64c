"""From a name to a model: configuration, checkpoint or seed, strict loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.checkpoint import Checkpoint, read_checkpoint
from edgesam_deploy.model.configs import ALIASES, MODELS, RepVitConfig, SamConfig, check, model_config, override
from edgesam_deploy.model.cwsam.configs import CwsamConfig, check_cwsam, fitted, from_model_args
from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.fetch import resolve, shipped_weights
from edgesam_deploy.model.layouts import recognise, wrong_model_message
from edgesam_deploy.model.sam import Sam, Weights
from edgesam_deploy.model.seeded import seeded_state
from edgesam_deploy.model.strict import load_strict


def configured(
    name: str, *, upsample: str | None = None, gelu: str | None = None, config: Mapping[str, Any] | None = None
) -> SamConfig | CwsamConfig:
    """The configuration of ``name`` with the caller's changes. Raises UnknownName or UsageError."""
    cfg = model_config(name)
    if isinstance(cfg, CwsamConfig):
        return _configured_cwsam(cfg, upsample, gelu, config or {})
    cfg = cast("SamConfig", override(cfg, config or {}))
    for option, value, allowed in (("upsample", upsample, ("bicubic", "bilinear")), ("gelu", gelu, ("erf", "tanh"))):
        if value is not None and value not in allowed:
            raise UsageError(f"{option}={value!r}: must be {' or '.join(allowed)}")
    if upsample:
        if not isinstance(cfg.image_encoder, RepVitConfig):
            raise UsageError(f"upsample={upsample!r}: {name} has no coarse features to enlarge; leave it out")
        cfg = override(cfg, {"image_encoder": {"upsample": upsample}})
    if gelu:
        cfg = override(cfg, {"image_encoder": {"gelu": gelu}})
        if cfg.mask_decoder is not None:
            cfg = override(cfg, {"mask_decoder": {"gelu": gelu}})
    check(cfg)
    return cfg


def _configured_cwsam(
    cfg: CwsamConfig, upsample: str | None, gelu: str | None, config: Mapping[str, Any]
) -> CwsamConfig:
    """``config`` holds either our fields or what its authors' files hold (``model_args``)."""
    if upsample or gelu:
        raise UsageError(f"{'upsample' if upsample else 'gelu'} belongs to promptable models; leave it out")
    if isinstance(config, Mapping) and "model_args" in config:
        rest = dict(config)
        size = rest.pop("image_size", None)  # --image-size, said beside the authors' file
        cfg, config = from_model_args(cfg, rest), {} if size is None else {"image_size": size}
    cfg = override(cfg, config)
    check_cwsam(cfg)
    return cfg


def load(
    name: str,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    upsample: str | None = None,
    gelu: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Sam | Cwsam:
    """A model of the family in ``eval`` mode, on the CPU, in float32.

    checkpoint: a path, or a name of ``edgesam-deploy fetch --list``; without one, and without a ``seed``, the weights
    that come along (``edge_sam_demo``'s do), else weights drawn from the seed (default 0), and everything built from
    the model says so. upsample: how the neck of an EdgeSAM enlarges its coarse
    features; bicubic, the default, is what it was trained with. gelu: ``erf`` or ``tanh`` instead of the model's own.
    config: field values for sizes that have no name, e.g. ``{"image_size": 512}``; for CWSAM also what its authors'
    files hold, ``{"model_args": ...}``.

    Raises UnknownName, UsageError, CheckpointError (not loadable, or of another model), MissingToolkit (a name that
    cannot be downloaded here).
    """
    if checkpoint is not None and seed is not None:
        raise UsageError("give a checkpoint or a seed, not both")
    cfg = configured(name, upsample=upsample, gelu=gelu, config=config)
    name = ALIASES.get(name, name)
    if checkpoint is None and seed is None:
        checkpoint = shipped_weights(name)
    if checkpoint is None:
        model = empty(cfg, name)
        seed = 0 if seed is None else seed
        shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
        load_strict(model, seeded_state(shapes, seed), where=f"seed {seed}")
        model.weights = Weights("seeded", seed=seed)
        return model
    path = resolve(str(checkpoint))
    file = read_checkpoint(path)
    tensors, cfg = _fitted(file, name, cfg)
    model = empty(cfg, name)
    load_strict(model, tensors, where=str(path))
    model.weights = Weights("checkpoint", path.name, file.sha256, notes=file.notes)
    return model


def network(cfg: SamConfig | CwsamConfig, name: str) -> Sam | Cwsam:
    """The network of a configuration, freshly initialised."""
    return Sam(cfg, name) if isinstance(cfg, SamConfig) else Cwsam(cfg, name)


def empty(cfg: SamConfig | CwsamConfig, name: str) -> Sam | Cwsam:
    """The same in ``eval`` mode with nothing in it yet; no random number is drawn."""
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        model = network(cfg, name)
    model = model.to_empty(device="cpu").eval()
    make_constants(model)
    return model


def make_constants(model: Sam | Cwsam) -> None:
    """Compute anew what no checkpoint holds; building on the meta device, or emptying, leaves it undefined."""
    for module in model.modules():
        make = getattr(module, "make_constants", None)
        if callable(make):
            make()


def _fitted(
    file: Checkpoint, name: str, cfg: SamConfig | CwsamConfig
) -> tuple[dict[str, Tensor], SamConfig | CwsamConfig]:
    """The checkpoint's tensors under this model's names, and the configuration in the checkpoint's own layout.

    Raises CheckpointError naming the model that would fit when it is another one's.
    """
    found = recognise(file.tensors)
    tensors = dict(file.tensors)
    alone = isinstance(cfg, SamConfig) and cfg.mask_decoder is None
    if found.encoder_only != alone or found.model not in (None, name):
        raise CheckpointError(f"{file.source}: {wrong_model_message(found, name, source=file.source)}")
    if isinstance(cfg, CwsamConfig):
        return tensors, _fitted_cwsam(file, name, cfg)
    if found.encoder_only and not found.prefixed:
        tensors = {f"image_encoder.{key}": value for key, value in tensors.items()}
    if found.rep_layout is not None and isinstance(cfg.image_encoder, RepVitConfig):
        cfg = replace(cfg, image_encoder=replace(cfg.image_encoder, rep_layout=found.rep_layout))
    return tensors, cfg


def _fitted_cwsam(file: Checkpoint, name: str, cfg: CwsamConfig) -> CwsamConfig:
    """The sizes that the checkpoint tells; how many experts there are is its to say. Raises CheckpointError where the
    caller asked for other pictures or classes.
    """
    found, usual = fitted(cfg, file.tensors), MODELS[name]
    for size in ("image_size", "classes", "embed_dim"):
        asked, has = getattr(cfg, size), getattr(found, size)
        if asked not in (has, getattr(usual, size)):
            raise CheckpointError(f"{file.source}: is of {size} {has}, not {asked}; leave it out of the configuration")
    return found


class _ModelRegistry(Mapping[str, Callable[..., Sam | Cwsam]]):
    """``sam_model_registry[name](checkpoint=...)``, the call that people's code has."""

    def __getitem__(self, name: str) -> Callable[..., Sam | Cwsam]:
        model_config(name)

        def build(checkpoint: str | Path | None = None, **options: Any) -> Sam | Cwsam:
            return load(name, checkpoint, **options)

        return build

    def __iter__(self) -> Iterator[str]:
        return iter([*MODELS, *ALIASES])

    def __len__(self) -> int:
        return len(MODELS) + len(ALIASES)


sam_model_registry = _ModelRegistry()
