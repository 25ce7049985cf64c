"""CWSAM's three families: against the reference's own outputs, an oracle in float64, and the layouts of checkpoints."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import replace
from pathlib import Path

import cwsam_oracle as oracle
import golden_weights
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.cwsam.configs import CWSAM_MODELS, check_cwsam, fitted, from_model_args
from edgesam_deploy.model.cwsam.decoder import ClassHead
from edgesam_deploy.model.cwsam.fft_prompts import LowPass
from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.cwsam.routing import expert_choice, token_choice

DATA = Path(__file__).parents[1] / "data"
CWSAM, MOE, GROUPS = "cwsam", "cwsam_moe_3b", "cwsam_hierarchical_moe_10b"
GOLDEN = {"cwsam_tiny": "cwsam_tiny", "moe3b_tiny": "cwsam_moe3b_tiny", "h10b_tiny": "cwsam_h10b_tiny"}
TINY = list(GOLDEN.values())
# layout: (model, parameters without the buffers)
LAYOUTS = {
    "cwsam_tiny": (CWSAM, 282_434),
    "cwsam_moe3b_tiny": (MOE, 740_510),
    "cwsam_h10b_tiny": (GROUPS, 790_511),
    "cwsam_vitb_10cls_1024": (CWSAM, 105_464_628),
    "cwsam_moe3b_real_1024": (MOE, 1_541_830_260),
    "cwsam_moe3b_seedtext_128experts": (MOE, 7_417_296_948),
    "cwsam_h10b_real_512": (GROUPS, 6_790_078_130),
}


@functools.cache
def layouts():
    files = [gzip.decompress((DATA / name).read_bytes()) for name in ("layouts.json.gz", "cwsam_layouts.json.gz")]
    return json.loads(files[0]) | json.loads(files[1])


def upstream(name):
    return json.loads((DATA / "cwsam_configs.json").read_text())[name]


def config_of(name):
    config = from_model_args(CWSAM_MODELS[LAYOUTS[name][0]], upstream(name))
    check_cwsam(config)
    return config


@functools.cache
def seeded(name, seed):
    """The tiny model with golden weights, and those; not to be written to."""
    state = golden_weights.state_dict(layouts()[name], seed)
    model = Cwsam(config_of(name), name).eval().requires_grad_(False)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return model, state


def picture(seed, size=128):
    image = (golden_weights.image(size, size, seed) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-3  # features have a standard deviation near 1, logits up to 2
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    model, _ = seeded(GOLDEN[name], 0)
    z = np.load(DATA / f"{name}.seed0.npz")
    close(model.features(picture(20)), z["features"])
    logits = model(picture(20))[0]
    close(logits[:, ::4, ::4], z["logits"])
    assert (logits.argmax(0).numpy() != z["class_map"]).mean() <= 1e-4


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", TINY)
def test_oracle(name, seed):
    model, state = seeded(name, seed)
    expected = oracle.logits(state, model.config, picture(30 + seed))
    ours = model(picture(30 + seed))[0]
    close(ours, expected)
    assert (ours.argmax(0) != expected.argmax(0)).float().mean() <= 1e-4


def test_the_embedding_is_scrambled():
    model, _ = seeded("cwsam_tiny", 0)
    patches = torch.randn(1, 8, 8, 64, generator=torch.Generator().manual_seed(0))
    generator = model.image_encoder.prompt_generator
    ours = generator.embed(patches).reshape(64, -1)
    expected = generator.embedding_generator(oracle.scrambled(patches[0]))
    assert torch.allclose(ours, expected, atol=1e-6)
    assert (ours - generator.embedding_generator(patches.reshape(64, 64))).abs().max() > 0.5  # the tidy reading


@pytest.mark.parametrize(("size", "line"), [(16, 4), (15, 3), (32, 16), (32, 1), (32, 0)])
def test_low_pass(size, line):
    image = np.random.default_rng(0).standard_normal((2, 3, size, size))
    rate = (2 * line / size) ** 2
    assert int((size * size * rate) ** 0.5 // 2) == line
    ours = LowPass(size, line)(torch.from_numpy(image))
    assert np.abs(ours.numpy() - oracle.low_pass(image, rate)).max() < 1e-12


def test_the_filter_keeps_one_of_two_mirrored_frequencies():
    wave = torch.cos(2 * torch.pi * torch.arange(16).double() / 4).expand(1, 1, 16, 16)  # 4 periods: -4 and +4
    assert torch.allclose(LowPass(16, 4)(wave), wave.abs() / 2)
    assert torch.allclose(LowPass(16, 5)(wave), wave.abs())


def test_constants_come_back_after_building_on_the_meta_device():
    with torch.device("meta"):
        layer = LowPass(8, 2)
    layer.to_empty(device="cpu").make_constants()
    assert torch.equal(layer.mask, LowPass(8, 2).mask)
    assert not layer.state_dict()


@pytest.mark.parametrize("classes", [1, 3, 10, 33])
def test_class_chunks_are_exact(classes):
    torch.manual_seed(0)
    head = ClassHead(32, classes).double().requires_grad_(False)
    x, weights = torch.randn(1, 8, 12, 12).double(), torch.randn(1, 4).double()
    whole = torch.nn.functional.gelu(head[3](head[2](head[1](head[0](x)))))
    expected = torch.einsum("c,ckhw->khw", weights[0], whole[0].unflatten(0, (4, classes)))
    assert torch.allclose(head(x, weights)[0], expected, atol=1e-12)


def test_what_does_not_reach_the_classes():
    """Kept for the round trip: unused adapters, three of four hypernetworks, the IoU head, the loss's weights."""
    model, _ = seeded("cwsam_moe3b_tiny", 0)
    other = Cwsam(model.config).eval()
    dead = ("Depth_Adapter", "mlps.1.", "mlps.2.", "mlps.3.", "iou_prediction_head", "criterionBCE")
    state = {k: v + 1 if any(part in k for part in dead) else v for k, v in model.state_dict().items()}
    other.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(other(picture(1)), model(picture(1)), rtol=0, atol=1e-4)  # sums depend on alignment


# ---------------------------------------------------------------------------------------------------------------------
# Routing


def experts(count, width=6, hidden=5, outputs=6, shards=1, seed=0):
    """w1, b1, w2, b2 in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(hidden, width), (hidden,), (outputs // shards, hidden), (outputs // shards,)]
    return [[torch.randn(shape, generator=generator).double() for _ in range(count * shards)] for shape in shapes]


def one(weights, index, x):
    w1, b1, w2, b2 = (part[index] for part in weights)
    return torch.relu(x @ w1.T + b1) @ w2.T + b2


def coarse(*shape):
    """Whole numbers: logits that tie all the time."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(sum(shape))).double()


@pytest.mark.parametrize("chosen", [1, 2, 5, 7])
def test_tokens_break_ties_by_the_lower_index(chosen):
    x, gate, weights = coarse(40, 6), coarse(7, 6), experts(7, outputs=3)
    logits = x @ gate.T
    mine, his = logits[:, :, None], logits[:, None, :]
    lower = torch.arange(7) < torch.arange(7)[:, None]
    taken = ((his > mine).sum(2) + ((his == mine) & lower).sum(2)) < chosen  # the rule, word by word
    assert (taken.sum(1) == chosen).all()
    share = logits.masked_fill(~taken, -torch.inf).softmax(1)
    expected = sum(share[:, e, None] * one(weights, e, x) for e in range(7))
    assert torch.allclose(token_choice(x, gate, None, *weights, chosen, "relu"), expected, atol=1e-12)
    moved = token_choice(x, gate, torch.arange(7.0).double() * 10, *weights, 1, "relu")
    assert torch.allclose(moved, one(weights, 6, x), atol=1e-12)  # the bias counts


@pytest.mark.parametrize(("capacity", "count"), [(1.5, 4), (1.0, 4), (9.0, 4), (1.5, 1), (0.1, 4)])
def test_experts_break_ties_by_the_lower_token(capacity, count):
    x, group_router, routers = coarse(30, 6), coarse(3, 6), [coarse(count, 6) + g for g in range(3)]
    weights = experts(3 * count, outputs=3, shards=1)
    sharded = [[part for one in column for part in (one, one)] for column in weights]  # two shards of one content
    ours = expert_choice(x, group_router, routers, *sharded, 2, capacity, 1, "relu")
    expected, taken_by = torch.zeros(30, 6).double(), [0] * 30
    groups = [max(range(3), key=lambda g, t=t: ((x[t] @ group_router[g]).item(), -g)) for t in range(30)]
    for group, router in enumerate(routers):
        own = [t for t in range(30) if groups[t] == group]
        for e in range(count):
            best = sorted(own, key=lambda t, r=router[e]: (-(x[t] @ r).item(), t))[: int(capacity * len(own) / count)]
            for t, share in zip(best, (x[best] @ router[e]).softmax(0), strict=True):
                expected[t] += share * one(weights, group * count + e, x[t]).repeat(2)
                taken_by[t] += 1
    assert torch.allclose(ours, expected, atol=1e-12)
    if capacity == 1.5 and count == 4:
        assert {0, 1, 2} <= set(taken_by)  # the case has tokens of every kind
        assert not ours[taken_by.index(0)].any()  # nobody's token gets nothing
    if capacity == 0.1:
        assert not ours.any()


def test_experts_choose_among_all_tokens():
    x, args = torch.randn(24, 6).double(), ([coarse(4, 6)], *experts(4), 1, 1.5, 1, "relu")
    whole = expert_choice(x, coarse(1, 6), *args)
    assert not torch.allclose(whole[:12], expert_choice(x[:12], coarse(1, 6), *args))
    weights = experts(4)
    tokens = token_choice(x, coarse(4, 6), None, *weights, 2, "relu")
    assert torch.allclose(tokens[:12], token_choice(x[:12], coarse(4, 6), None, *weights, 2, "relu"))


def test_operators_are_well_formed_and_counted():
    x, gate = torch.randn(10, 6).double(), torch.randn(4, 6).double()
    first = (x, gate, None, *experts(4, outputs=3), 2, "gelu")
    second = (x, torch.randn(2, 6).double(), [gate, gate], *experts(8, shards=2), 2, 1.5, 1, "gelu")
    for operator, args in ((token_choice, first), (expert_choice, second)):
        torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))
    with FlopCounterMode(display=False) as counter:
        token_choice(*first)
    assert counter.get_total_flops() == 2 * 10 * (6 * 4 + 2 * (6 * 5 + 5 * 3))
    with FlopCounterMode(display=False) as counter:
        expert_choice(*second)
    assert counter.get_total_flops() == 2 * 10 * (6 * 2 + 6 * 4) + 2 * 15 * 2 * (6 * 5 + 5 * 3)


MIXTURES = {"cwsam_tiny": (0, 0), "cwsam_moe3b_tiny": (4, 0), "cwsam_h10b_tiny": (3, 2)}


@pytest.mark.parametrize("name", TINY)
def test_export_holds_for_another_picture(name):
    """One node per mixture: nothing of the sample's routing is in the program."""
    model, _ = seeded(name, 0)
    program = torch.export.export(model, (picture(20),), strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    operators = "edgesam_deploy.token_choice.default", "edgesam_deploy.expert_choice.default"
    assert tuple(targets.count(operator) for operator in operators) == MIXTURES[name]
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(7))
    assert torch.equal(program.module()(noise), model(noise))


# ---------------------------------------------------------------------------------------------------------------------
# Layouts and configurations


def on_meta(config):
    with torch.device("meta"):
        return Cwsam(config)


@functools.cache
def network(name):
    return on_meta(config_of(name))


def shapes(model):
    return [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name):
    """Names, shapes and order of the checkpoints; the real sizes too."""
    model = network(name)
    assert shapes(model) == [*layouts()[name].items()]
    assert sum(p.numel() for p in model.parameters()) == LAYOUTS[name][1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_real_configurations_are_the_tables(name):
    if name.endswith(("1024", "512")):
        assert config_of(name) == CWSAM_MODELS[LAYOUTS[name][0]]


def untold(config):
    """What shapes do not tell is set to what the table says."""
    encoder = config.image_encoder
    return replace(config, image_encoder=replace(encoder, experts=replace(encoder.experts, chosen=0)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_tells_its_sizes(name):
    tensors = network(name).state_dict()
    assert untold(fitted(CWSAM_MODELS[LAYOUTS[name][0]], tensors)) == untold(config_of(name))


@pytest.mark.parametrize("asked", CWSAM_MODELS)
@pytest.mark.parametrize("name", TINY)
def test_a_checkpoint_of_another_family_is_fitted_too(asked, name):
    config = fitted(CWSAM_MODELS[asked], network(name).state_dict())
    assert shapes(on_meta(config)) == shapes(network(name))


def test_fitting_leaves_what_nothing_tells():
    config = CWSAM_MODELS[MOE]
    assert fitted(config, {}) == config
    assert fitted(config, {"image_encoder.pos_embed": torch.empty(1, 0)}) == replace(config, class_weights=False)
    tensors = network("cwsam_tiny").state_dict()
    del tensors["criterionBCE.weight"]
    assert not fitted(CWSAM_MODELS[CWSAM], tensors).class_weights
    tiny = config_of("cwsam_tiny")
    whole = replace(tiny, image_encoder=replace(tiny.image_encoder, window=8))  # a window of the whole grid
    assert fitted(whole, on_meta(whole).state_dict()) == whole
    few = replace(config.image_encoder.experts, count=3)
    few = replace(config, image_encoder=replace(config.image_encoder, experts=few, depth=29))
    assert fitted(config, on_meta(few).state_dict()).image_encoder.experts.chosen == 3


@given(data=st.data(), name=st.sampled_from(TINY), asked=st.sampled_from([*CWSAM_MODELS]))
def test_no_set_of_names_and_shapes_is_an_error(data, name, asked):
    names = st.sampled_from([*layouts()[name], "image_encoder.blocks." + "9" * 5000, ""])
    found = data.draw(st.dictionaries(names, st.lists(st.integers(0, 3), max_size=4), max_size=20))
    assert fitted(CWSAM_MODELS[asked], {key: torch.empty(shape, device="meta") for key, shape in found.items()})


@pytest.mark.parametrize("shape", [(2, 3, 128, 128), (1, 3, 128, 96), (1, 3, 256, 256), (3, 128, 128)])
def test_one_picture_of_the_models_size(shape):
    with pytest.raises(UsageError, match=r"must be \(1, 3, 128, 128\): one at a time"):
        seeded("cwsam_tiny", 0)[0](torch.zeros(shape))


def test_face():
    model = network("cwsam_moe3b_tiny")
    assert (model.image_size, model.classes, model.promptable, model.name) == (128, 33, False, "cwsam")
    assert model.device.type == "meta"
    assert model(torch.empty(1, 3, 128, 128, device="meta")).shape == (1, 33, 128, 128)


def changed(config, path, value):
    name, *rest = path.split(".", 1)
    return replace(config, **{name: changed(getattr(config, name), rest[0], value) if rest else value})


@pytest.mark.parametrize(
    ("model", "path", "value", "says"),
    [
        (CWSAM, "image_size", 1000, "multiple of the patch"),
        (CWSAM, "image_size", 0, "image_size 0: must be at least 1"),
        (CWSAM, "classes", 0, "classes"),
        (CWSAM, "embed_dim", 260, "multiple of 8"),
        (CWSAM, "embed_dim", 72, "8 heads"),
        (CWSAM, "image_encoder.width", 24, "width 24: must be at least 32"),
        (CWSAM, "image_encoder.width", 770, "12 heads"),
        (CWSAM, "image_encoder.depth", 5, "from 0 to 4"),
        (CWSAM, "image_encoder.window", 0, "image_encoder.window"),
        (CWSAM, "image_encoder.pass_rate", 0.0, "pass_rate"),
        (CWSAM, "image_encoder.pass_rate", 1.5, "pass_rate"),
        (CWSAM, "mask_decoder.downsample", 3, "embed_dim / 3"),
        (CWSAM, "mask_decoder.mask_tokens", 0, "mask_tokens"),
        (CWSAM, "mask_decoder.experts.kind", "groups", "image encoder only"),
        (CWSAM, "image_encoder.experts.kind", "sparse", "dense, token or groups"),
        (MOE, "image_encoder.experts.chosen", 17, "1 to 16"),
        (MOE, "image_encoder.experts.chosen", 0, "1 to 16"),
        (MOE, "mask_decoder.experts.count", 1, "1 to 1"),
        (MOE, "image_encoder.experts.first_block", 32, "from 0 to 31"),
        (GROUPS, "image_encoder.experts.groups", 0, "groups"),
        (GROUPS, "image_encoder.experts.capacity", 0.0, "capacity"),
        (GROUPS, "image_encoder.experts.shards", 3, "3 shards"),
        (GROUPS, "image_encoder.experts.groups_chosen", 2, "no published model"),
    ],
)
def test_configurations_that_cannot_be_built(model, path, value, says):
    with pytest.raises(UsageError, match=says):
        check_cwsam(changed(CWSAM_MODELS[model], path, value))


@pytest.mark.parametrize("model", CWSAM_MODELS)
def test_named_configurations_can_be_built(model):
    check_cwsam(CWSAM_MODELS[model])


@pytest.mark.parametrize(
    ("model", "args", "says"),
    [
        (CWSAM, {"classes": 3}, "unknown key 'classes'; known: encoder_mode, inp_size"),
        (CWSAM, {"encoder_mode": {"moe_k": 3}}, "unknown key 'moe_k'; known: adaptor, depth"),
        (MOE, {"encoder_mode": {"moe_k_groups": 1}}, "unknown key 'moe_k_groups'"),
        (CWSAM, {"encoder_mode": {"qkv_bias": False}}, "only true"),
        (CWSAM, {"encoder_mode": {"out_chans": 64, "prompt_embed_dim": 32}}, "is not prompt_embed_dim"),
        (CWSAM, {"encoder_mode": [1]}, "encoder_mode: expected a mapping"),
        (CWSAM, {"encoder_mode": {"depth": "many"}}, "depth='many': expected a whole number"),
        (CWSAM, {"encoder_mode": {"depth": True}}, "whole number"),
        (CWSAM, {"encoder_mode": {"global_attn_indexes": "2,5"}}, "whole numbers"),
        (CWSAM, {"loss": "iou", "loss_weight": [1.0]}, "one number for each of 10 classes"),
        (CWSAM, {"loss": "iou", "loss_weight": 1.0}, "one number for each of 10 classes"),
        (CWSAM, {"model_args": {}, "overrides": {}}, "the file: unknown key 'overrides'"),
        (CWSAM, {"model_args": {}, "overrides_of_hardcoded": {"tw_moe": {"k": 2}}}, "tw_moe: unknown key 'k'"),
        (CWSAM, {"model_args": {}, "overrides_of_hardcoded": {"md": {"x": 2}}}, "known: iou_head_hidden_dim"),
        (CWSAM, {"model_args": 3}, "model_args: expected a mapping"),
    ],
)
def test_model_args_that_do_not_fit(model, args, says):
    with pytest.raises(UsageError, match=says):
        from_model_args(CWSAM_MODELS[model], args)


def test_model_args_without_their_wrapper():
    args = {"num_classes": 5, "inp_size": 256, "encoder_mode": {"depth": 8, "window_size": 7, "out_chans": 64}}
    config = from_model_args(CWSAM_MODELS[MOE], args)
    assert (config.classes, config.image_size, config.embed_dim, config.class_weights) == (5, 256, 64, False)
    assert (config.image_encoder.depth, config.image_encoder.window) == (8, 7)
    assert config.image_encoder.global_blocks == (7,)  # of a longer list, those that exist
    assert config.image_encoder.experts == CWSAM_MODELS[MOE].image_encoder.experts
    few = from_model_args(CWSAM_MODELS[MOE], {"encoder_mode": {"moe_num_experts": 3, "moe_start_layer_index": 9}})
    assert (few.image_encoder.experts.count, few.image_encoder.experts.chosen) == (3, 3)
