"""Pictures per second of phases 1 and 2 against a plain loop: python -m benchmarks.training_throughput.

The plain loop over the same modules is what one writes by hand: a DataLoader with two workers over the same items,
forward, backward, clipping and one optimiser step, tensors laid out as they come; no checkpoints, logs, schedule,
running mean, or anything that makes a run resumable. Both sides have the same student, teacher, data and batch, and
take turns: each round runs some updates of either, in an order drawn anew, and gives one ratio. A loader's start
belongs to both. CPU time, the workers' left out, stands beside wall time, since it suffers less from other processes.
The share of the wall time in which the plain loop waits for its loader says whether data is the bottleneck.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.interleaved import Machine, Ratio
from edgesam_deploy.distill.data.items import collate
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.recipe import Recipe, parse, read_stages
from edgesam_deploy.distill.synthetic import synthesize
from edgesam_deploy.distill.train import make_trainer
from edgesam_deploy.model.registry import configured, network

ALONE = Ranks(0, 1, torch.device("cpu"))
GOAL = 1.0  # pictures per second, not fewer than the plain loop's


@dataclass(frozen=True)
class Phase:
    """One phase's figures: pictures/s of both sides by wall clock (medians), ratios ours / plain by wall and CPU time,
    and the share of the plain loop's time that it waited for data.
    """

    name: str
    ours: float
    plain: float
    wall: Ratio
    cpu: Ratio
    waiting: float


def recipe_of(stage: str, folder: Path, updates: int, batch: int) -> Recipe:
    """A demonstration stage without a run behind it: a teacher with random weights, ``updates`` to an epoch."""
    made = read_stages(stage, out=folder)[0].model_dump(mode="json")
    teacher = folder / "teacher.pth"
    if not teacher.exists():
        torch.manual_seed(0)
        torch.save(network(configured("edge_sam", config=made["teacher"]["config"]), "edge_sam").state_dict(), teacher)
    made["teacher"]["checkpoint"] = str(teacher)
    made["model"]["checkpoint"] = None
    made["data"] |= {"root": str(folder / "scenes"), "batch_size": batch, "workers": 2, "samples": updates * batch}
    made["rates"]["warmup_epochs"] = 0
    made["train"] |= {"epochs": 10_000, "log_every": 10, "save_every": 10_000}
    return parse(made, where=stage)


def plain_loop(recipe: Recipe, folder: Path) -> Callable[[int], float]:
    """A function that trains a number of updates and returns the seconds it waited for data."""
    made = make_trainer(recipe, folder, ALONE)  # its modules, data and optimiser; not its loop
    objective, items, optimizer = made.objective, made.items, made.optimizer
    objective.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as modules are when loaded
    for group in optimizer.param_groups:
        group["lr"] = recipe.rates.base
    state = {"update": 0}

    def run(updates: int) -> float:
        objective.train()
        waited = 0.0
        loader = iter(
            DataLoader(items, recipe.data.batch_size, shuffle=True, num_workers=recipe.data.workers, collate_fn=collate)
        )
        for number in range(updates):
            start = time.perf_counter()
            batch = next(loader)
            waited += (time.perf_counter() - start) * (number > 0)  # the first batch pays for the workers' start
            terms, _ = objective(batch, state["update"])
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
            nn.utils.clip_grad_norm_(objective.parameters(), recipe.optimizer.clip_grad)
            optimizer.step()
            state["update"] += 1
        return waited

    return run


def engine(recipe: Recipe, folder: Path) -> Callable[[int], float]:
    """The same by this project's engine, without its checkpoints: how often they are written is the user's choice."""
    trainer = make_trainer(recipe, folder, ALONE)
    trainer.save = lambda: None  # type: ignore[method-assign]

    def run(updates: int) -> float:
        trainer.fit(until=trainer.progress.update + updates)
        return 0.0

    return run


def measure(stage: str, folder: Path, *, rounds: int, updates: int, batch: int) -> Phase:
    """Interleaved rounds of both sides."""
    recipe = recipe_of(stage, folder, updates, batch)
    sides = {"ours": engine(recipe, folder / f"{stage}_ours"), "plain": plain_loop(recipe, folder / f"{stage}_plain")}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    waited = 0.0
    order = random.Random(0)
    for run in sides.values():
        run(updates)
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            start, used = time.perf_counter(), time.process_time()
            waiting = sides[name](updates)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
            waited += waiting
    pictures = updates * batch
    return Phase(
        stage,
        pictures / float(np.median(wall["ours"])),
        pictures / float(np.median(wall["plain"])),
        Ratio.of(wall["plain"], wall["ours"]),
        Ratio.of(cpu["plain"], cpu["ours"]),
        waited / sum(wall["plain"]),
    )


def report(machine: Machine, phases: list[Phase], options: argparse.Namespace) -> str:
    """The Markdown file."""
    rows = [
        f"| {p.name} | {p.ours:.1f} | {p.plain:.1f} | {p.wall} | {p.cpu} | {p.waiting:.1%} "
        f"| {'reached' if min(p.cpu.median, p.wall.median) >= GOAL else 'missed'} |"
        for p in phases
    ]
    return "\n".join([
        "# Training throughput against a plain loop over the same modules",
        "",
        str(machine),
        "",
        f"Synthetic scenes, batch {options.batch}, two loading workers, {options.threads} thread(s), {options.rounds} "
        f"interleaved rounds of {options.updates} updates; ratios are pictures/s ours / plain, medians (quartiles), "
        f"the goal is {GOAL:.1f} or more. `python -m benchmarks.training_throughput` writes this file.",
        "",
        "| stage | images/s | plain images/s | wall ratio | CPU ratio | plain loop waits for data | verdict |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Write results/training_throughput.{md,json}; 6 where a ratio is below the goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=6, help="per round and side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _ in synthesize(folder / "scenes", count=options.updates * options.batch):
            pass
        sizes = {"rounds": options.rounds, "updates": options.updates, "batch": options.batch}
        phases = [measure(stage, folder, **sizes) for stage in ("demo_encoder", "demo_student")]
    machine = Machine.here(("torch", "numpy"))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training_throughput.md").write_text(report(machine, phases, options))
    chosen = {**sizes, "threads": options.threads}
    content = {"machine": asdict(machine), "options": chosen, "phases": [asdict(p) for p in phases]}
    (options.out / "training_throughput.json").write_text(json.dumps(content, indent=2) + "\n")
    print(report(machine, phases, options))
    return 0 if all(min(p.cpu.median, p.wall.median) >= GOAL for p in phases) else 6


if __name__ == "__main__":
    sys.exit(main())
