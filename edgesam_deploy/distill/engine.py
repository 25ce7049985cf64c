"""The training loop: one stage of a recipe, on any number of ranks, interruptible at every update.

An update is ``accumulation`` batches on each rank. Which pictures it sees is a function of (seed, epoch, update): rank
r of R takes the r-th part of each global batch, so that R ranks see what one rank with an R times larger batch sees,
and losses are weighed by how many prompts a rank had, so that the gradients are the same too.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from edgesam_deploy.distill.boards import Boards
from edgesam_deploy.distill.checkpointing import checkpoint_activations
from edgesam_deploy.distill.convert import deployable, without_lora
from edgesam_deploy.distill.data.items import Batch, Items, collate
from edgesam_deploy.distill.fake_quantization import quantize_convolutions
from edgesam_deploy.distill.objectives import Objective
from edgesam_deploy.distill.objectives_semantic import SemanticObjective
from edgesam_deploy.distill.parallel import Ranks, across_ranks
from edgesam_deploy.distill.parameters import adapters_only, freeze, freeze_statistics, make_optimizer
from edgesam_deploy.distill.recipe import Recipe
from edgesam_deploy.distill.schedule import Schedule, batch_factor
from edgesam_deploy.distill.state import Log, check_same_recipe, newest_checkpoint, save_checkpoint, save_model
from edgesam_deploy.errors import TrainingError
from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.sam import Sam

PATIENCE = 20  # updates in a row whose gradients are not finite, after which a run has diverged
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """Where a run stands: ``update`` of ``total`` done, the last one's figures; ``broken`` samples and ``skipped``
    updates so far.
    """

    update: int
    total: int
    epoch: int = 0
    rate: float = 0.0
    loss: float = math.nan
    terms: dict[str, float] = field(default_factory=dict)
    grad_norm: float = math.nan
    images_per_s: float = math.nan
    broken: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and its last figures."""

    status: Literal["done", "stopped"]
    progress: Progress
    model: Path | None


class Trainer:
    """Trains ``objective.student`` on ``items`` into the folder ``out``; resumes what lies there."""

    def __init__(
        self,
        objective: Objective | SemanticObjective,
        items: Items,
        out: Path,
        ranks: Ranks,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        recipe = objective.recipe
        self.recipe, self.items, self.out, self.ranks, self.say = recipe, items, out, ranks, say
        self.student: Sam | Cwsam = objective.student
        freeze(self.student, recipe.train.freeze, recipe.train.unfreeze)
        if recipe.model.lora:
            adapters_only(self.student.mask_decoder)
        if recipe.train.quantize_encoder:
            quantize_convolutions(self.student.image_encoder)
        if recipe.train.activation_checkpointing:
            checkpoint_activations(self.student.image_encoder)
        if ranks.world > 1 and recipe.train.sync_batch_norm:
            objective.student = self.student = across_ranks(self.student, ranks.device)  # type: ignore[assignment]
        # A bit faster with several threads (benchmarks/training_throughput.py), and GPUs want it for 16 bit. The
        # price on a CPU: torch's batch norm adds up a channel in one fp32 register, 1e-5 off for 8 maps of 128 x 128
        objective.to(device=ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective: nn.Module = objective
        if ranks.world > 1:
            self.objective = DistributedDataParallel(objective, find_unused_parameters=True)
        self.optimizer = make_optimizer(self.student, recipe.optimizer)
        self.scaler = GradScaler(ranks.device.type, enabled=recipe.train.precision == "fp16")
        self.average: AveragedModel | None = None
        if recipe.train.ema:
            mean = get_ema_multi_avg_fn(recipe.train.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.student, multi_avg_fn=mean, use_buffers=True)
        per_update = recipe.data.batch_size * ranks.world * recipe.train.accumulation
        self.updates_per_epoch = math.ceil(len(items) / per_update)
        self.schedule = make_schedule(recipe, self.updates_per_epoch, ranks.world)
        self.progress = Progress(0, self.updates_per_epoch * recipe.train.epochs)
        self._stop = threading.Event()
        self._diverging = 0
        self._broken = 0  # samples, of this rank

    # --- the run -----------------------------------------------------------------------------------------------------

    def fit(self, report: Callable[[Progress], None] = lambda progress: None, until: int | None = None) -> Outcome:
        """Train to the end, or to update ``until``, or until SIGTERM; a checkpoint is left in each case.

        Raises TrainingError for a run of another recipe in ``out``, for one that diverged, and where the disk refuses.
        """
        self._resume()
        log = Log(self.out, self.progress.update) if self.ranks.first else None
        board = self._boards() if self.ranks.first else None
        last = min(self.progress.total, until or self.progress.total)
        try:
            with self._stopping_on_sigterm():
                while self.progress.update < last and not self._stop.is_set():
                    self._epoch(last, log, board, report)
        finally:
            if board is not None:
                board.close()
        if self.progress.update < self.progress.total:
            self.save()
            return Outcome("stopped", self.progress, None)
        return Outcome("done", self.progress, self._finish())

    def _epoch(self, last: int, log: Log | None, board: Boards | None, report: Callable[[Progress], None]) -> None:
        train, now = self.recipe.train, self.progress
        epoch = now.update // self.updates_per_epoch
        now.epoch = epoch
        self.items.set_epoch(epoch)
        self.objective.train()
        if train.frozen_statistics:
            freeze_statistics(self.student)
        for name in train.freeze:
            if isinstance(part := getattr(self.student, name, None), nn.Module):
                part.eval()
        loader = self._loader(epoch, now.update % self.updates_per_epoch)
        started, pictures = time.perf_counter(), 0
        for batches in _groups(loader, train.accumulation):
            pictures += sum(len(b.images) for b in batches) * self.ranks.world
            terms = self._update(batches)
            now.update += 1
            ends = now.update in (last, (epoch + 1) * self.updates_per_epoch)
            if now.update % train.log_every == 0 or ends:
                now.terms = {k: float(v) for k, v in terms.items()}
                now.loss = sum(now.terms.values())
                now.broken = int(self.ranks.sums(torch.tensor(self._broken, device=self.ranks.device)))
                now.images_per_s = pictures / (time.perf_counter() - started)
                started, pictures = time.perf_counter(), 0
                self._write(log, board)
                report(now)
            if train.check_ranges_every and now.update % train.check_ranges_every == 0 and self.ranks.first:
                self._check_ranges(board)
            if self.ranks.most(float(self._stop.is_set())):
                self._stop.set()
                return
            if now.update >= last:
                return
            if train.save_every_updates and now.update % train.save_every_updates == 0 and not ends:
                self.save()
        if (epoch + 1) % train.save_every == 0 and now.update < now.total:
            self.save()

    def _update(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One optimiser step; the mean of each loss over the batches, on all ranks."""
        rate = self.progress.rate = self.schedule(self.progress.update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            self._note_broken(batch)
            moved = batch.to(self.ranks.device)
            synced: Any = nullcontext()
            if isinstance(self.objective, DistributedDataParallel) and number + 1 < len(batches):
                synced = self.objective.no_sync()
            with synced:
                with self._autocast():
                    micro = self.progress.update * len(batches) + number
                    terms, count = self.objective(moved, micro)
                share = self._share(count) / len(batches)
                loss = torch.stack(list(terms.values())).sum() * share
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.detach() * share
        self._step()
        if self.ranks.world > 1:
            summed = self.ranks.sums(torch.stack(list(totals.values()))) / self.ranks.world
            totals = dict(zip(totals, summed, strict=True))
        return totals

    def _share(self, count: float) -> float:
        """What a rank's mean counts for among the ranks' means: the mean over all prompts is then that of one rank."""
        if self.ranks.world == 1:
            return 1.0
        total = self.ranks.sums(torch.tensor(float(count), device=self.ranks.device))
        return count * self.ranks.world / (float(total) or 1.0)  # 0 where no pixel of any rank has a label

    def _step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.student.parameters() if p.grad is not None]
        limit = self.recipe.optimizer.clip_grad or math.inf
        norm = float(nn.utils.clip_grad_norm_(trained, limit))
        self.progress.grad_norm = norm
        if math.isfinite(norm):
            self._diverging = 0
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update_parameters(self.student)
        else:
            self.progress.skipped += 1
            self._diverging += 1
            if self.scaler.is_enabled():
                self.scaler.step(self.optimizer)  # finds the overflow, skips, and lowers the scale in update()
            if self._diverging >= PATIENCE:
                raise TrainingError(
                    f"{self.out}: gradients were not finite {PATIENCE} times in a row, at update "
                    f"{self.progress.update}; lower rates.base, or use precision bf16 or fp32, and resume"
                )
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    # --- data --------------------------------------------------------------------------------------------------------

    def _loader(self, epoch: int, done: int) -> DataLoader[Any]:
        """This rank's batches of what is left of an epoch."""
        data, train = self.recipe.data, self.recipe.train
        order = epoch_order(len(self.items), train.seed, epoch, self.updates_per_epoch, self._per_update())
        own = []
        for start in range(done * self._per_update(), len(order), data.batch_size * self.ranks.world):
            first = start + self.ranks.rank * data.batch_size
            own.append(order[first : first + data.batch_size].tolist())
        pinned = self.ranks.device.type == "cuda"
        return DataLoader(
            self.items,
            batch_sampler=own,
            collate_fn=collate,
            num_workers=data.workers,
            pin_memory=pinned,
            worker_init_fn=_outlive_sigterm,
        )

    def _per_update(self) -> int:
        return self.recipe.data.batch_size * self.ranks.world * self.recipe.train.accumulation

    def _note_broken(self, batch: Batch) -> None:
        for problem in batch.broken:
            self._broken += 1
            self.say(f"left out: {problem}")

    def _autocast(self) -> Any:
        precision = self.recipe.train.precision
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.ranks.device.type, PRECISIONS[precision])

    # --- state -------------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        state = newest_checkpoint(self.out, self.say)
        if state is None:
            return
        check_same_recipe(state["recipe"], self._recipe_json(), self.out)
        self.student.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["torch_rng"])
        self.progress.update, self.progress.skipped = state["update"], state["skipped"]
        self.progress.broken = state["broken"]
        self._broken = state["broken"] if self.ranks.first else 0
        self.say(f"resumed at update {self.progress.update} of {self.progress.total}")

    def save(self) -> None:
        """Leave a checkpoint of this moment; the first rank writes, all wait."""
        if self.ranks.first:
            state = {
                "update": self.progress.update,
                "epoch": self.progress.update // self.updates_per_epoch,
                "skipped": self.progress.skipped,
                "broken": self.progress.broken,
                "recipe": self._recipe_json(),
                "model": self.student.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "torch_rng": torch.get_rng_state(),
            }
            save_checkpoint(self.out, self.progress.update, state, self.recipe.train.keep)
        self.ranks.wait()

    def _finish(self) -> Path | None:
        self.save()
        if not self.ranks.first:
            return None
        trained = self.student if self.average is None else self.average.module
        about = f"{self.student.name}, trained by the recipe {self.recipe.name}"
        return save_model(self.out, deployable(trained.state_dict()), about, without_lora(self.recipe.model.config))

    def _recipe_json(self) -> dict[str, Any]:
        """The recipe as plain data, with what else decides the numbers."""
        return {**self.recipe.model_dump(mode="json"), "world": self.ranks.world, "pictures": len(self.items)}

    def _write(self, log: Log | None, board: Boards | None) -> None:
        now = asdict(self.progress)
        if log is not None:
            log.write(now)
        if board is not None:
            scalars = {f"loss/{k}": v for k, v in self.progress.terms.items()}
            scalars |= {name: now[name] for name in ("loss", "rate", "grad_norm", "images_per_s")}
            board.add(scalars, self.progress.update)

    def _boards(self) -> Boards:
        train, recipe = self.recipe.train, self._recipe_json()
        return Boards(self.out, self.progress.update, name=self.recipe.name, recipe=recipe, wandb=train.wandb)

    def _check_ranges(self, board: Boards | None) -> None:
        """Say what fp16 would break of the model as it is now; on the first rank, and nothing of the run changes."""
        from edgesam_deploy.distill.range_check import fp16_candidates

        now = self.progress.update
        found = fp16_candidates(self.student, self.recipe, self.items)
        if board is not None:
            board.add({f"fp16/{kind}": float(len(rows)) for kind, rows in found.items()}, now)
        worst = [f"{kind} {rows[0].tensor.title}: {rows[0].why}" for kind, rows in found.items() if rows]
        counted = ", ".join(f"{len(rows)} {kind}" for kind, rows in found.items() if rows)
        text = f"{counted}; the worst: {'; '.join(worst)}" if worst else "fits"
        self.say(f"update {now}: fp16: {text}")

    @contextmanager
    def _stopping_on_sigterm(self) -> Iterator[None]:
        """SIGTERM ends the run after the update that is being computed, with a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda number, frame: self._stop.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def epoch_order(count: int, seed: int, epoch: int, updates: int, per_update: int) -> Tensor:
    """The pictures of an epoch in order: a permutation by (seed, epoch), padded from its beginning to full updates."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return torch.from_numpy(np.resize(order, updates * per_update))


def _outlive_sigterm(worker: int) -> None:
    """Schedulers signal whole process groups: the workers go on until the trainer has saved, and ends them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _groups(loader: DataLoader[Any], size: int) -> Iterator[list[Batch]]:
    group: list[Batch] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def make_schedule(recipe: Recipe, updates_per_epoch: int, world: int) -> Schedule:
    """The recipe's learning rates in updates, in proportion to the batch."""
    rates, data = recipe.rates, recipe.data
    factor = 1.0
    if rates.reference_batch:
        factor = batch_factor(data.batch_size, world, recipe.train.accumulation, rates.reference_batch)
    return Schedule(
        rates.kind,
        rates.base * factor,
        rates.minimum * factor,
        rates.warmup * factor,
        int(rates.warmup_epochs * updates_per_epoch),
        recipe.train.epochs * updates_per_epoch,
        "reference" if "warmup_drop" in recipe.reference_faults else "continuous",
        max(1, int(rates.decay_epochs * updates_per_epoch)),
        rates.decay_rate,
    )
