"""Checkpoints between stages: joined, taken apart, merged, halved; a run of the reference that goes on here."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from tiny import CONFIG, recipe

from edgesam_deploy.distill.convert import extracted, halved, joined, merged_lora, write_weights
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.recipe import merged
from edgesam_deploy.distill.reference_run import read_run
from edgesam_deploy.distill.train import make_trainer, train_stages
from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.checkpoint import read_checkpoint
from edgesam_deploy.model.registry import load

ALONE = Ranks(0, 1, torch.device("cpu"))
RANDOM = torch.Generator().manual_seed(0)


def model(seed=0):
    return load("edge_sam", seed=seed, config=CONFIG)


def test_a_phase_1_encoder_gets_the_decoder_of_a_sam(tmp_path):
    """convert_weights.py: a bare encoder under 'model', a flat SAM with an encoder of its own."""
    student, sam = model(1), model(2)
    bare = student.image_encoder.state_dict()
    torch.save({"model": bare, "epoch": 9}, tmp_path / "ckpt_epoch_9.pth")
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    parts = [read_checkpoint(tmp_path / name).tensors for name in ("ckpt_epoch_9.pth", "sam.pth")]
    write_weights(tmp_path / "whole.pth", joined(*parts), "test")
    whole = load("edge_sam", tmp_path / "whole.pth", config=CONFIG).state_dict()
    for name, value in whole.items():
        origin = student if name.startswith("image_encoder.") else sam
        assert torch.equal(value, origin.state_dict()[name]), name


def test_what_does_not_fit_together_is_refused():
    encoder, sam = model().image_encoder.state_dict(), model().state_dict()
    with pytest.raises(CheckpointError, match="no prompt_encoder and no mask_decoder"):
        joined(encoder, encoder)
    narrow = {k: v[:16] if k == "neck.0.weight" else v for k, v in encoder.items()}
    with pytest.raises(CheckpointError, match="embeddings have 16 channels, the decoder reads 32"):
        joined(narrow, sam)
    with pytest.raises(CheckpointError, match="no tensor of mask_decoder"):
        extracted({"image_encoder.a": torch.zeros(1)}, "mask_decoder")
    with pytest.raises(UsageError, match="must be one of image_encoder"):
        extracted(sam, "decoder")


def test_a_teachers_part_loads_into_the_bare_module(tmp_path):
    """extract_weights.py as its train.py needs it: names without the part's own."""
    sam = model(3)
    for part in ("prompt_encoder", "mask_decoder", "image_encoder"):
        found = extracted(sam.state_dict(), part, bare=True)
        write_weights(tmp_path / f"{part}.pth", found, "test")
        module = getattr(model(4), part)
        module.load_state_dict(torch.load(tmp_path / f"{part}.pth", weights_only=True))
        assert all(torch.equal(v, getattr(sam, part).state_dict()[k]) for k, v in module.state_dict().items())
    assert all(name.startswith("mask_decoder.") for name in extracted(sam.state_dict(), "mask_decoder"))


def test_half_precision_keeps_counters_and_refuses_what_it_cannot_hold(tmp_path):
    tensors = {"w": torch.randn(4, 4, generator=RANDOM), "n": torch.tensor(70000)}
    write_weights(tmp_path / "h.safetensors", halved(tensors), "test")
    read = safetensors.torch.load_file(tmp_path / "h.safetensors")
    assert (read["w"].dtype, read["n"].dtype, int(read["n"])) == (torch.float16, torch.int64, 70000)
    assert torch.allclose(read["w"].float(), tensors["w"], rtol=1e-3)
    with pytest.raises(CheckpointError, match=r"w: exceeds half precision \(1e\+05\)"):
        halved({"w": torch.tensor([1e5])})
    with pytest.raises(UsageError, match="suffix"):
        write_weights(tmp_path / "h.bin", tensors, "test")


# --- low-rank pairs --------------------------------------------------------------------------------------------------


def test_only_the_pairs_learn_and_the_saved_model_has_them_merged(scenes, tmp_path):
    made = recipe(scenes, model={"lora": 2}, train={"freeze": ["image_encoder", "prompt_encoder"]})
    trainer = make_trainer(made, tmp_path, ALONE)
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    outcome = trainer.fit()
    adapted = trainer.student.eval()
    after = adapted.state_dict()
    learned = {k for k, v in after.items() if not torch.equal(v, before[k]) and "image_encoder" not in k}
    assert learned
    assert all(name.endswith((".lora_A", ".lora_B")) for name in learned)
    plain = load("edge_sam", outcome.model, config=CONFIG)
    assert not any("lora" in name for name in plain.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=RANDOM)
    box = torch.tensor([[5.0, 5, 40, 40]])
    answers = []
    for network in (adapted, plain):
        with torch.no_grad():
            sparse, dense = network.prompt_encoder(None, box)
            pe = network.prompt_encoder.get_dense_pe()
            answers.append(network.mask_decoder.predict_masks(network.image_encoder(x), pe, sparse, dense)[0])
    assert torch.allclose(*answers, atol=1e-5)
    with pytest.raises(CheckpointError, match="without its lora_B"):
        merged_lora({"q.weight": torch.zeros(2, 2), "q.lora_A": torch.zeros(1, 2)})


# --- a run of the reference ------------------------------------------------------------------------------------------


def reference_optimizer(network):
    """As its build_optimizer does: two groups, before anything is frozen."""
    named = list(network.named_parameters())
    decay = [p for n, p in named if p.ndim > 1 and not n.endswith(".bias")]
    plain = [p for n, p in named if p.ndim <= 1 or n.endswith(".bias")]
    groups = [{"params": decay, "lr_scale": 1.0}, {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)


@pytest.fixture
def reference_file(tmp_path, monkeypatch):
    """ckpt_epoch_0.pth of a run whose prompt encoder was frozen, its configuration a pickled yacs node."""
    network = model(5)
    optimizer = reference_optimizer(network)
    network.prompt_encoder.requires_grad_(False)
    for _ in range(2):
        for name, p in network.named_parameters():
            if p.requires_grad:
                p.grad = torch.full_like(p, 1e-3 * (1 + len(name)))
        optimizer.step()
    CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    modules = {"yacs": types.ModuleType("yacs"), "yacs.config": types.ModuleType("yacs.config")}
    modules["yacs.config"].CfgNode = CfgNode
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": {"t": 3}}
    content |= {"max_accuracy": 0.0, "scaler": {}, "epoch": 0, "config": CfgNode(A=1)}
    torch.save(content, tmp_path / "ckpt_epoch_0.pth")
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "ckpt_epoch_0.pth", network, optimizer


def test_a_reference_run_goes_on_with_its_moments(scenes, tmp_path, reference_file):
    path, network, theirs = reference_file
    made = recipe(scenes, train={"epochs": 3, "freeze": ["prompt_encoder"]})
    said = []
    # only the first update is of interest: what the trainer holds when it begins
    trainer = make_trainer(made, tmp_path / "run", ALONE, said.append)
    from edgesam_deploy.distill.reference_run import adopt

    adopt(trainer, read_run(path))
    assert trainer.progress.update == trainer.updates_per_epoch
    names = {id(p): n for n, p in trainer.student.named_parameters()}
    wanted = {n: theirs.state[p] for n, p in network.named_parameters() if p in theirs.state}
    compared = 0
    for p in (p for group in trainer.optimizer.param_groups for p in group["params"]):
        state, want = trainer.optimizer.state[p], wanted[names[id(p)]]
        assert all(torch.equal(state[k], want[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
        compared += 1
    assert compared == len(wanted)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in trainer.student.state_dict().items())
    outcomes = train_stages([made], tmp_path / "run", ALONE, say=said.append, continued=path)
    assert outcomes[0].status == "done"
    assert "resumed at update 3 of 9" in said
    assert sum("weights and optimiser; epochs done: 1" in text for text in said) == 1


def test_what_is_no_run_of_this_model_is_refused(scenes, tmp_path, reference_file):
    path, network, _ = reference_file

    def refused(made, file, match):
        with pytest.raises(CheckpointError, match=match):
            train_stages([made], tmp_path / "run", ALONE, continued=file)
        assert not list((tmp_path / "run").glob("*.pt"))

    refused(recipe(scenes, train={"epochs": 1}), path, "nothing is left to do")
    wide = {"mask_decoder": {"mlp_dim": 64}}
    refused(recipe(scenes, model={"config": merged(CONFIG, wide)}), path, "does not fit edge_sam")
    content = {"model": network.state_dict(), "optimizer": {"state": {}, "param_groups": []}, "epoch": 0}
    torch.save(content, tmp_path / "groups.pth")
    refused(recipe(scenes), tmp_path / "groups.pth", r"groups of \[\] parameters")
    torch.save(OrderedDict(network.state_dict()), tmp_path / "flat.pth")
    refused(recipe(scenes), tmp_path / "flat.pth", "no optimiser state")
    write_weights(tmp_path / "flat.safetensors", network.state_dict(), "test")
    refused(recipe(scenes), tmp_path / "flat.safetensors", "weights alone")
    with pytest.raises(UsageError, match="belongs to one stage"):
        train_stages([recipe(scenes)] * 2, tmp_path / "run", ALONE, continued=path)
