"""From a recipe to a trained model: build, load, train, stage after stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesam_deploy.distill.data import open_source
from edgesam_deploy.distill.data.items import ItemOptions, Items
from edgesam_deploy.distill.embeddings import EmbeddingReader
from edgesam_deploy.distill.engine import Outcome, Progress, Trainer
from edgesam_deploy.distill.objectives import Embed, EncoderObjective, Objective, PromptObjective, embeddings_of
from edgesam_deploy.distill.objectives_hq import HqObjective
from edgesam_deploy.distill.objectives_semantic import SemanticObjective
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.recipe import Recipe, merged
from edgesam_deploy.distill.reference_run import adopt, read_run
from edgesam_deploy.distill.state import MODEL, checkpoints
from edgesam_deploy.distill.synthetic import synthesize
from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.checkpoint import read_checkpoint
from edgesam_deploy.model.configs import SamConfig
from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.fetch import resolve
from edgesam_deploy.model.registry import configured, load, network
from edgesam_deploy.model.repvit import ChannelMixer
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.model.transformer import LoraLinear

HQ_BRANCH = tuple(
    f"mask_decoder.{name}."
    for name in ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")
)
DONE = MODEL  # a stage that left its model is not trained again


def train_stages(
    stages: Sequence[Recipe],
    out: Path,
    ranks: Ranks,
    *,
    say: Callable[[str], None] = lambda text: None,
    report: Callable[[Recipe, Progress], None] = lambda recipe, progress: None,
    continued: Path | None = None,
) -> list[Outcome | None]:
    """Train each stage into ``out``/{its name}, or into ``out`` if it is alone; None for one that was done before.

    continued: a ``ckpt_epoch_N.pth`` of the reference, from which a single stage that has no checkpoint yet goes on.
    Ends with a stage that was interrupted.
    """
    if continued is not None and len(stages) > 1:
        raise UsageError(f"{continued}: belongs to one stage, this recipe has {len(stages)}; name the stage's recipe")
    outcomes: list[Outcome | None] = []
    for recipe in stages:
        folder = out / recipe.name if len(stages) > 1 else out
        if (folder / DONE).is_file():
            say(f"{recipe.name}: done before, {folder / DONE}")
            outcomes.append(None)
            continue
        trainer = make_trainer(recipe, folder, ranks, say)
        if continued is not None and not checkpoints(folder):
            adopt(trainer, read_run(continued))
        outcome = trainer.fit(partial(report, recipe))
        outcomes.append(outcome)
        if outcome.status == "stopped":
            break
    return outcomes


def make_trainer(recipe: Recipe, out: Path, ranks: Ranks, say: Callable[[str], None] = lambda text: None) -> Trainer:
    """Everything of a stage, built and loaded."""
    prepare_data(recipe, ranks, say)
    teacher = make_teacher(recipe, ranks)
    student = make_student(recipe, teacher, say)
    items = make_items(recipe, student)
    return Trainer(make_objective(recipe, student, teacher), items, out, ranks, say)


def prepare_data(recipe: Recipe, ranks: Ranks, say: Callable[[str], None]) -> None:
    """Make the synthetic scenes that a recipe asks for where there are none. The first rank does."""
    data, wanted = recipe.data, recipe.data.synthetic
    annotations = Path(data.root) / "annotations" / data.split
    if wanted is not None and ranks.first:
        have = len(list(annotations.glob("*.json"))) if annotations.is_dir() else 0
        if have < wanted.count:
            say(f"making {wanted.count} synthetic scenes in {data.root}" + (f", {have} are there" if have else ""))
            for _ in synthesize(
                Path(data.root), count=wanted.count, seed=wanted.seed, size=wanted.size, split=data.split,
                style=wanted.style, go_on=True,
            ):  # fmt: skip
                pass
    ranks.wait()


def make_items(recipe: Recipe, student: Sam | Cwsam) -> Items:
    """The data set as items for a student's model frame."""
    data, objective = recipe.data, recipe.objective
    low, high = data.filter_by_area
    options = ItemOptions(
        image_size=student.image_size,
        max_prompts=data.max_prompts,
        masks=objective.kind in ("masks", "hq") or objective.points_from_masks or data.mask_nms < 1,
        filter_by_area=(low or None, high or None),
        mask_nms=data.mask_nms,
        box_jitter=data.box_jitter,
        augment=data.augment,
        classes=student.classes if isinstance(student, Cwsam) else 0,
        ignored_label=data.ignored_label,
        with_replacement="repeated_prompts" in recipe.reference_faults,
    )
    source = open_source(data.layout, Path(data.root), data.split)
    return Items(source, options, seed=recipe.train.seed, limit=data.samples)


# --- models ----------------------------------------------------------------------------------------------------------


def make_student(recipe: Recipe, teacher: Sam | None, say: Callable[[str], None]) -> Sam | Cwsam:
    """The student with its first weights: drawn from the seed, then the teacher's decoder, then the checkpoint's."""
    section = recipe.model
    cfg = configured(section.name, config=with_lora(section.config, section.lora))
    if isinstance(cfg, SamConfig) != (recipe.objective.kind != "semantic"):
        raise UsageError(f"model.name {section.name}: is not trained by objective.kind {recipe.objective.kind!r}")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.train.seed)
        student = network(cfg, section.name)
        initialise(student)
    if isinstance(student, Cwsam):
        if section.checkpoint is not None:
            load_matching(student, section.checkpoint, say)
        return student
    if section.from_teacher:
        if teacher is None or not teacher.promptable:
            raise UsageError("model.from_teacher: the teacher needs a checkpoint, or a prompt encoder and mask decoder")
        copy_decoder(teacher, student, say)
    if section.checkpoint is not None:
        load_into(student, section.checkpoint, say)
    return student


def with_lora(config: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """A student's configuration with pairs of ``rank`` in its mask decoder; as it is for 0."""
    return merged(config, {"mask_decoder": {"lora": rank}}) if rank else dict(config)


def initialise(model: nn.Module) -> None:
    """What PyTorch's own initialisation leaves unfit to train: branches start as nothing, LoRA pairs can move."""
    for module in model.modules():
        if isinstance(module, ChannelMixer):
            norm = getattr(module.m[-1], "bn", None)
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)  # begins as the identity, as RepViT's does
        if isinstance(module, LoraLinear):
            nn.init.kaiming_uniform_(module.lora_A, a=5**0.5)
    position = getattr(getattr(model, "image_encoder", None), "pos_embed", None)
    if isinstance(position, nn.Parameter):
        nn.init.trunc_normal_(position, std=0.02)


def copy_decoder(teacher: Sam, student: Sam, say: Callable[[str], None]) -> None:
    """Start prompt encoder and mask decoder as the teacher's. What has another shape or no counterpart, as a dynamic
    tanh's alpha, keeps its own start, and is named.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    parts = ("prompt_encoder.", "mask_decoder.")
    fitting = {k: v for k, v in theirs.items() if k.startswith(parts) and k in own and own[k].shape == v.shape}
    missing = [k for k in own if k.startswith(parts) and k not in fitting]
    student.load_state_dict(fitting, strict=False)
    if missing:
        say(f"from the teacher: {len(fitting)} tensors; not there, or of another shape: {', '.join(missing[:4])}")


def load_matching(student: Cwsam, checkpoint: str, say: Callable[[str], None]) -> None:
    """What a SAM's checkpoint has under the same name and in the same shape, as CWSAM begins (its ``prompt_encoder``
    goes by other names and is not taken); of a semantic model's own checkpoint, all of it.

    Raises CheckpointError where nothing fits.
    """
    file = read_checkpoint(resolve(checkpoint))
    own = student.state_dict()
    fitting = {name: value for name, value in file.tensors.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise CheckpointError(f"{file.source}: no tensor fits {student.name} with this configuration")
    student.load_state_dict(fitting, strict=False)
    say(f"from {file.source.name}: {len(fitting)} of {len(own)} tensors; the rest keeps its random start")


def load_into(student: Sam, checkpoint: str, say: Callable[[str], None]) -> None:
    """Weights of the whole model, or of an image encoder alone, as phase 1 leaves it.

    Only whole parts may be missing. Raises CheckpointError for a part that lacks a tensor, and for foreign ones.
    """
    file = read_checkpoint(resolve(checkpoint))
    own = student.state_dict()
    tensors = dict(file.tensors)
    if not any(name in own for name in tensors):
        tensors = {f"image_encoder.{name}": value for name, value in tensors.items()}
    strangers = [k for k, v in tensors.items() if k not in own or own[k].shape != v.shape]
    given = {name.split(".")[0] for name in tensors}
    lacking = [name for name in own if name.split(".")[0] in given and name not in tensors and ".lora_" not in name]
    # a decoder whose norms became dynamic tanh has an alpha that its ancestor had not
    alphas = [name for name in lacking if name.endswith(".alpha")]
    # and one with an HQ branch has that
    branch = [name for name in lacking if name.startswith(HQ_BRANCH)]
    branch = branch if not any(name.startswith(HQ_BRANCH) for name in tensors) else []
    lacking = [name for name in lacking if name not in (*alphas, *branch)]
    if strangers or lacking:
        what = f"{strangers[0]} does not fit" if strangers else f"{lacking[0]} is missing"
        raise CheckpointError(
            f"{file.source}: {what} ({len(strangers)} of {len(tensors)} tensors strange, {len(lacking)} missing); "
            f"it is not of {student.name} with this configuration"
        )
    student.load_state_dict(tensors, strict=False)
    kept = f"; {len(alphas)} alphas of dynamic tanh, which it has not, keep their start" if alphas else ""
    kept += f"; the {len(branch)} tensors of the HQ branch keep theirs" if branch else ""
    say(f"from {file.source.name}: {', '.join(sorted(given))}{kept}")


def make_teacher(recipe: Recipe, ranks: Ranks) -> Sam | None:
    """The teacher, frozen, or None where the recipe has none, or only its written embeddings are needed."""
    section = recipe.teacher
    if section is None:
        return None
    alone = section.embeddings is not None and recipe.objective.kind == "encoder"
    if alone:
        return None
    if section.embeddings is not None and recipe.objective.kind == "hq":
        raise UsageError("teacher.embeddings: an HQ branch reads more of the encoder than those; leave it out")
    if section.checkpoint is None:
        raise UsageError("teacher.checkpoint: needed, since its embeddings or its decoder are")
    teacher = load(section.name, section.checkpoint, config=section.config)
    if not isinstance(teacher, Sam):
        raise UsageError(f"teacher.name {section.name}: a semantic model has no prompts to imitate")
    return teacher.requires_grad_(False).to(ranks.device)


def make_objective(recipe: Recipe, student: Sam | Cwsam, teacher: Sam | None) -> Objective | SemanticObjective:
    """What the recipe minimises."""
    if isinstance(student, Cwsam):
        return SemanticObjective(student, recipe)
    if recipe.objective.kind == "hq":
        return HqObjective(student, recipe, teacher)
    if recipe.objective.kind == "masks":
        return PromptObjective(student, recipe)
    embed = _embed(recipe, student, teacher)
    if recipe.objective.kind == "encoder":
        return EncoderObjective(student, recipe, embed)
    return PromptObjective(student, recipe, teacher, embed)


def _embed(recipe: Recipe, student: Sam, teacher: Sam | None) -> Embed:
    """The teacher's embeddings, read where they were written, else computed."""
    section = recipe.teacher
    assert section is not None
    if section.embeddings is not None:
        side = student.image_size // 16
        return EmbeddingReader(Path(section.embeddings), (student.config.embed_dim, side, side)).batch
    assert teacher is not None
    return embeddings_of(teacher)
