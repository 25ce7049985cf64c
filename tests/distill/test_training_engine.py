"""The engine: what is learned, what a resume repeats bit for bit, what a failing disk or a signal leaves behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from dataclasses import asdict

import pytest
import torch
from tiny import CONFIG, recipe
from torch import nn

from edgesam_deploy.distill import state
from edgesam_deploy.distill.checkpointing import checkpoint_activations
from edgesam_deploy.distill.engine import PATIENCE, epoch_order, make_schedule
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.parameters import freeze, make_optimizer
from edgesam_deploy.distill.recipe import Optimizer
from edgesam_deploy.distill.train import make_trainer
from edgesam_deploy.errors import TrainingError
from edgesam_deploy.model.registry import load

ALONE = Ranks(0, 1, torch.device("cpu"))


def trainer(made, out, said=None):
    return make_trainer(made, out, ALONE, (said if said is not None else []).append)


def lines(out):
    """The log without what time decides."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "images_per_s"} for r in records]


# every mechanism with state: accumulation over a batch that wraps round, running mean, augmentation, refinement
STATEFUL = {
    "train": {"accumulation": 2, "ema": 0.9, "epochs": 3},
    "data": {"augment": "flip_scale", "box_jitter": True},
    "objective": {"iterations": 2, "iterate_on_box": True, "prompts": ["box"]},
}


@pytest.fixture(scope="module")
def uninterrupted(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    outcome = trainer(recipe(scenes, **STATEFUL), out).fit()
    assert outcome.status == "done"
    return out


def test_the_loss_falls(scenes, tmp_path):
    made = recipe(scenes, train={"epochs": 30}, objective={"prompts": ["box"]}, rates={"base": 5e-3})
    trainer(made, tmp_path).fit()
    found = [line["loss"] for line in lines(tmp_path)]
    assert len(found) == 90
    assert sum(found[-9:]) < 0.8 * sum(found[:9])
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_resumed_run_is_the_uninterrupted_one(scenes, tmp_path, uninterrupted, stop):
    """In the middle of an epoch, at its end, and before the last update: the same bytes, the same log."""
    made = recipe(scenes, **STATEFUL)
    first = trainer(made, tmp_path).fit(until=stop)
    assert (first.status, first.model, first.progress.update) == ("stopped", None, stop)
    said = []
    outcome = trainer(made, tmp_path, said).fit()
    assert f"resumed at update {stop} of 6" in said
    assert outcome.model.read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert lines(tmp_path) == lines(uninterrupted)


def test_what_was_computed_after_the_checkpoint_is_computed_again(scenes, tmp_path, uninterrupted):
    """As after kill -9: the log is ahead of the checkpoint, its last line cut short."""
    made = recipe(scenes, **STATEFUL)
    trainer(made, tmp_path).fit(until=2)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"update": 3, "loss": 9}\n{"update": 4, "lo')
    outcome = trainer(made, tmp_path).fit()
    assert outcome.model.read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert lines(tmp_path) == lines(uninterrupted)


def test_sigterm_leaves_a_checkpoint(scenes, tmp_path, uninterrupted):
    made = recipe(scenes, **STATEFUL)
    before = signal.getsignal(signal.SIGTERM)
    stopped = trainer(made, tmp_path).fit(lambda now: os.kill(os.getpid(), signal.SIGTERM) if now.update == 3 else None)
    assert (stopped.status, stopped.progress.update) == ("stopped", 3)
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer(made, tmp_path).fit().model.read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_passed_over(scenes, tmp_path, uninterrupted):
    made = recipe(scenes, **STATEFUL)
    trainer(made, tmp_path).fit(until=2)
    trainer(made, tmp_path).fit(until=4)
    newest = state.checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    said = []
    outcome = trainer(made, tmp_path, said).fit()
    assert any("checkpoint_00000004.pt is damaged" in text for text in said)
    assert "resumed at update 2 of 6" in said
    assert outcome.model.read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_nothing_readable_is_no_silent_beginning(scenes, tmp_path):
    (tmp_path / "checkpoint_00000002.pt").write_bytes(b"rubbish")
    with pytest.raises(TrainingError, match="none of its 1 checkpoints can be read"):
        trainer(recipe(scenes), tmp_path).fit()


def test_another_recipe_does_not_resume(scenes, tmp_path):
    trainer(recipe(scenes), tmp_path).fit(until=1)
    with pytest.raises(TrainingError, match=r"rates\.base was 0\.001, is 0\.002"):
        trainer(recipe(scenes, rates={"base": 2e-3}), tmp_path).fit()
    changed = recipe(scenes, data={"workers": 1}, train={"log_every": 2, "keep": 1})
    assert trainer(changed, tmp_path).fit(until=2).progress.update == 2


def test_the_newest_checkpoints_are_kept(scenes, tmp_path):
    trainer(recipe(scenes, train={"epochs": 4, "keep": 2}), tmp_path).fit()
    assert [p.name for p in state.checkpoints(tmp_path)] == ["checkpoint_00000009.pt", "checkpoint_00000012.pt"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space"), RuntimeError("PytorchStreamWriter: file write failed")]
)
def test_a_full_disk_loses_nothing(scenes, tmp_path, monkeypatch, error):
    made = recipe(scenes)
    trainer(made, tmp_path).fit(until=1)
    kept = {path: path.read_bytes() for path in state.checkpoints(tmp_path)}

    def refuse(value, path):
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(state.torch, "save", refuse)
        with pytest.raises(TrainingError, match="no space left on the disk; earlier checkpoints are untouched"):
            trainer(made, tmp_path).fit(until=2)
    assert {path: path.read_bytes() for path in state.checkpoints(tmp_path)} == kept
    assert not list(tmp_path.glob(".*"))
    assert trainer(made, tmp_path).fit().status == "done"


def test_a_file_that_may_not_grow_loses_nothing(scenes, tmp_path):
    """The system itself refuses in the middle of a checkpoint: a limit on the size of files."""
    made = recipe(scenes)
    trainer(made, tmp_path).fit(until=1)
    kept = {path: path.read_bytes() for path in state.checkpoints(tmp_path)}
    going_on = trainer(made, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(
            TrainingError, match=r"cannot write .*checkpoint_00000002\.pt: .*earlier checkpoints are unt"
        ):
            going_on.fit(until=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path: path.read_bytes() for path in state.checkpoints(tmp_path)} == kept
    assert not list(tmp_path.glob(".*"))
    assert trainer(made, tmp_path).fit().status == "done"


def test_divergence_ends_with_a_word(scenes, tmp_path):
    made = recipe(scenes, train={"epochs": 20})
    diverging = trainer(made, tmp_path)
    with torch.no_grad():
        diverging.student.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=f"not finite {PATIENCE} times in a row"):
        diverging.fit()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision(scenes, tmp_path, precision):
    made = recipe(scenes, train={"precision": precision, "epochs": 6})
    fitted = trainer(made, tmp_path)
    outcome = fitted.fit()
    assert outcome.progress.loss < 20
    assert outcome.progress.skipped < 12  # until the scale of the loss fits into half precision
    assert outcome.progress.skipped == 0 or precision == "fp16"
    assert all(torch.isfinite(p).all() for p in fitted.student.parameters())


def test_frozen_parts_stay(scenes, tmp_path):
    made = recipe(scenes, train={"freeze": ["image_encoder", "mask_decoder.transformer"], "frozen_statistics": True})
    frozen = trainer(made, tmp_path)
    before = {k: v.clone() for k, v in frozen.student.state_dict().items()}
    frozen.fit()
    changed = {k for k, v in frozen.student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any(k.startswith(("image_encoder", "mask_decoder.transformer")) for k in changed)
    with pytest.raises(TrainingError, match=r"train\.freeze 'mask_encoder'"):
        freeze(frozen.student, ["mask_encoder"])
    with pytest.raises(TrainingError, match="nothing is left to train"):
        freeze(frozen.student, ["image_encoder", "prompt_encoder", "mask_decoder"])


def test_weight_decay_goes_to_matrices():
    model = load("edge_sam", seed=0, config=CONFIG)
    freeze(model, ["prompt_encoder"])
    groups = make_optimizer(model, Optimizer(weight_decay=0.1)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert "mask_decoder.iou_token.weight" in decayed  # (1, C): as the reference has it
    assert "image_encoder.neck.1.weight" in plain
    assert all(name.endswith((".weight", ".bias")) for name in plain)
    assert not any(name.startswith("prompt_encoder") for name in decayed | plain)
    sgd = make_optimizer(model, Optimizer(name="sgd"))
    assert sgd.defaults["nesterov"]


def test_rates_follow_the_batch(scenes):
    made = recipe(scenes, rates={"reference_batch": 512, "base": 0.1}, data={"batch_size": 8})
    schedule = make_schedule(made, updates_per_epoch=10, world=8)
    assert (schedule.base, schedule.warmup, schedule.total) == (pytest.approx(0.0125), 5, 20)


def test_every_picture_in_every_epoch():
    order = epoch_order(10, seed=0, epoch=3, updates=3, per_update=4)
    assert sorted(order[:10].tolist()) == list(range(10))
    assert order[10:].tolist() == order[:2].tolist()
    assert order.tolist() != epoch_order(10, 0, 4, 3, 4).tolist()
    assert epoch_order(3, 0, 0, 1, 8).tolist() == epoch_order(3, 0, 0, 1, 8).tolist()


def test_checkpointed_activations_change_nothing():
    """Gradients and running statistics are those of the plain encoder: the second computation counts no batch."""
    plain, spare = (load("edge_sam", seed=0, config=CONFIG).image_encoder.train() for _ in range(2))
    checkpoint_activations(spare)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for encoder in (plain, spare):
        encoder(x).square().mean().backward()
    for one, other in zip(plain.parameters(), spare.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)
    for (name, one), (_, other) in zip(plain.named_buffers(), spare.named_buffers(), strict=True):
        assert torch.allclose(one, other), name
    spare.eval()
    plain.eval()
    with torch.no_grad():
        assert torch.equal(plain(x), spare(x))


def test_a_broken_sample_is_counted_and_named(scenes, tmp_path):
    import shutil

    shutil.copytree(scenes, tmp_path / "data")
    picture = tmp_path / "data/images/train/scene_000003.jpg"
    picture.write_bytes(picture.read_bytes()[:200])
    said = []
    outcome = trainer(recipe(tmp_path / "data"), tmp_path / "out", said).fit()
    assert outcome.progress.broken == 2  # once an epoch
    assert sum("left out: scene_000003" in text for text in said) == 2
    assert asdict(outcome.progress)["update"] == 6


@pytest.mark.parametrize(("spread", "mean"), [(3.0, 1.0), (1.0, 1000.0)])
def test_batch_norm_over_ranks_equals_batch_norm(tmp_path, spread, mean):
    """One rank of one: outputs, gradients and statistics are those of PyTorch's own, also of maps that hardly vary."""
    from edgesam_deploy.distill.parallel import across_ranks

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        layers = [nn.Sequential(nn.BatchNorm2d(3)) for _ in range(2)]
        across_ranks(layers[1], torch.device("cpu"))
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * spread + mean
        results = []
        for layer in layers:
            inputs = x.clone().requires_grad_()
            output = layer(inputs)
            (output * torch.arange(5.0)).square().sum().backward()
            results.append((output, inputs.grad, layer[0].weight.grad, layer[0].running_mean, layer[0].running_var))
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, atol=1e-4 if mean == 1 else 1e-3 * float(one.detach().abs().max()))
        assert layers[1][0].num_batches_tracked == 1
    finally:
        torch.distributed.destroy_process_group()
