"""What holds for each pass of the library, those of tomorrow included."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, parsed, randomise, traced
from torch import Tensor, nn

import edgesam_deploy.passes as passes_package
from edgesam_deploy.contract import Role, sample_inputs
from edgesam_deploy.model.cwsam.configs import ExpertsConfig
from edgesam_deploy.model.cwsam.experts import TokenChoice
from edgesam_deploy.model.layers import DynamicTanh, LayerNorm2d
from edgesam_deploy.model.prompt_encoder import PositionEmbeddingRandom
from edgesam_deploy.model.transformer import Attention
from edgesam_deploy.passes import aten, onnx
from edgesam_deploy.passes.engine import Engine, Pass
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

ROOMS = {"aten": aten, "onnx": onnx}
ALL = [(room, name) for room, module in ROOMS.items() for name in module.__all__]
FOLDER = Path(next(iter(passes_package.__path__)))
VERBS = ("decompose", "fuse", "fold", "legalize", "absorb", "eliminate", "canonicalize", "quantize", "merge", "limit",
         "freeze", "narrow", "set", "simplify", "split", "cast")  # fmt: skip
NAMED_OTHERWISE = {
    "boolean_to_float", "channel_last_upscaling", "gather_to_slice", "gelu_to_tanh", "hoist_positional_encoding",
    "linear_to_conv", "pixels_to_planes", "tokens_to_maps",
}  # fmt: skip


EVERYWHERE = {"canonicalize_names", "cast_to_half"}  # passes that find work in any program
FACTORIES = {
    "cast_to_half": "fp16",
    "freeze_dims": {"n": 2},
    "set_opset": 20,
    "split_large_ops": 12,
}  # passes that take an argument


def get(room: str, name: str) -> Pass:
    found = getattr(ROOMS[room], name)
    if name in FACTORIES:
        found = found(FACTORIES[name])
    assert isinstance(found, Pass)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_one_file_each(room: str) -> None:
    files = {path.stem for path in (FOLDER / room).glob("*.py")} - {"__init__", "graph", "attention"}
    assert files == set(ROOMS[room].__all__)


@pytest.mark.parametrize(("room", "name"), ALL)
def test_names_and_docstrings(room: str, name: str) -> None:
    """File, function and log line share a name that begins with the field's verb; the docstring says what and why."""
    rewrite = get(room, name)
    assert (rewrite.name, rewrite.dialect) == (name, room)
    assert rewrite.run.__module__ == f"edgesam_deploy.passes.{room}.{name}"
    assert name.split("_")[0] in VERBS or name in NAMED_OTHERWISE
    text = rewrite.run.__doc__ or ""
    assert re.fullmatch(r"[A-Z].*[.:,\w]", rewrite.why)
    assert "Why:" in text
    assert re.search(r"\bExact\b", text) if rewrite.is_exact else rewrite.note


@pytest.mark.parametrize(("room", "name"), ALL)
def test_passes_know_neither_targets_nor_models(room: str, name: str) -> None:
    tree = ast.parse((FOLDER / room / f"{name}.py").read_text())
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    allowed = ("edgesam_deploy.passes", "edgesam_deploy.errors", "edgesam_deploy.contract")
    assert all(m.startswith(allowed) for m in modules if m.startswith("edgesam_deploy"))


@pytest.mark.parametrize(("room", "name"), ALL)
def test_no_state_between_runs(room: str, name: str) -> None:
    """A pass is a function of the program: the second program gets what the first got."""
    steps = []
    for _ in range(2):
        engine = Engine("off")
        programs = (lively(), prompted()) if room == "aten" else (debris(),)
        after = [counts(engine.run(program, (get(room, name),))) for program in programs]
        steps.append(([step.sites for step in engine.steps], after))
    assert steps[0] == steps[1]


@pytest.mark.parametrize(("room", "name"), [pair for pair in ALL if pair[1] not in EVERYWHERE])
def test_nothing_matches(room: str, name: str) -> None:
    if room == "aten":
        program = traced(Calls(lambda _, x: x.sin() * x), ("batch", 3))
    else:
        program = parsed("part (float[batch,3] x) => (float[batch,3] y) { a = Sin(x) y = Mul(a, x) }")
    assert Engine("fast").run(program, (get(room, name),)) is program


class Lively(nn.Module):
    """Something for every aten pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.pointwise = nn.Conv2d(8, 8, 1, groups=8)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 4, 2, 2), LayerNorm2d(4), nn.GELU(), nn.ConvTranspose2d(4, 2, 2, 2), nn.GELU()
        )
        self.hyper = nn.Linear(8, 2)
        self.experts = TokenChoice(8, 4, ExpertsConfig("token", count=3, chosen=2), "relu")
        self.to_tokens, self.to_image = Attention(8, 2, 2), Attention(8, 2, 2)
        self.register_buffer("offset", torch.linspace(-1, 1, 8)[:, None, None], persistent=False)
        self.register_buffer("places", torch.linspace(-1, 1, 640).reshape(1, 80, 8), persistent=False)
        self.register_buffer("kept", F.pad(torch.ones(8, 9), (6, 25, 3, 21)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.fft.ifft2(torch.fft.fft2(x) * self.kept).real
        x = F.gelu(self.conv(x))
        x = self.depthwise(x) + self.pointwise(x) + x
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        small = F.interpolate(x, scale_factor=0.25, mode="bicubic").clone()
        grid = torch.arange(8.0).sin()
        tokens = (small + self.offset).flatten(2).transpose(1, 2) + grid
        windows = tokens.reshape(1, 2, 4, 2, 5, 8).transpose(2, 3).reshape(-1, 20, 8)
        tokens = tokens + self.experts(windows).reshape(1, 2, 2, 4, 5, 8).transpose(2, 3).reshape(1, 80, 8)
        self.hyper(tokens).exp()  # dead
        few, several = F.layer_norm(tokens, [8])[:, :4], tokens[:, :10]  # absorbing pays for 4
        asked = self.to_image(several, F.layer_norm(tokens, [8]) + self.places, tokens)
        tokens = tokens + self.to_tokens(tokens, few, few)
        hyper = self.hyper(torch.stack([asked[:, 0], asked[:, 9]], 1))
        up = self.up(tokens.transpose(1, 2).unflatten(2, small.shape[2:]))
        return (hyper @ up.flatten(2)).unflatten(2, up.shape[2:])


PIPELINE = (
    aten.eliminate_identity, aten.eliminate_dead, aten.fold_constants, aten.legalize_moe_routing,
    aten.decompose_fft, aten.fold_batch_norm, aten.merge_parallel_convs, aten.legalize_bicubic,
    aten.eliminate_dead_rows, aten.absorb_channel_offset, aten.absorb_token_projections,
    aten.canonicalize_cross_attention, aten.absorb_constant_projections,
    aten.decompose_softmax,
    aten.channel_last_upscaling, aten.limit_rank, aten.gather_to_slice, aten.decompose_spatial_mean,
)  # fmt: skip


@cache  # the engine works on copies
def lively() -> Program:
    return traced(randomise(Calls(lambda s, x: s.net(x), net=Lively()), spread=0.3), (1, 3, 32, 40))


class Prompted(nn.Module):
    """Something for every aten pass that runtimes without these operators add: an image x, points y, labels z."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dyt = nn.Conv2d(3, 8, 1), DynamicTanh(8, channels_last=False)
        self.neck, self.projection, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), LayerNorm2d(8)
        self.tokens = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.places, self.row = PositionEmbeddingRandom(4), nn.Embedding(1, 8)

    def forward(self, x: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.projection(self.neck(self.dyt(self.conv(x)))))
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        x = F.interpolate(0.5 * x * (1 + torch.erf(x / 2**0.5)), scale_factor=2, mode="bilinear")
        prompt = self.places.encode((coords + 0.5) / 1024) + (labels[..., None] == -1) * self.row.weight
        masks = self.tokens(prompt) @ x.flatten(2)
        return masks, (masks > 1).float().sum(-1) / masks.shape[-1]


NPU_PIPELINE = (
    aten.eliminate_identity, aten.fold_constants, aten.fuse_channel_norm, aten.fuse_gelu, aten.boolean_to_float,
    aten.absorb_pointwise_conv, aten.legalize_resize, aten.fold_dyt_affine, aten.decompose_layer_norm_2d,
    aten.decompose_layer_norm, aten.linear_to_conv,
)  # fmt: skip
ALTERNATIVES = (  # take the place of others
    aten.decompose_gelu, aten.decompose_layer_norm_fp32, aten.eliminate_unit_batch, aten.legalize_bicubic_channel_last,
    aten.merge_label_rows, aten.merge_parallel_heads, aten.fold_scale, aten.pixels_to_planes,
    aten.tokens_to_maps, aten.legalize_matmul_rank, aten.canonicalize_given_queries,
)  # fmt: skip
ROUGH_PIPELINE = (aten.gelu_to_tanh, aten.legalize_comparison_sums, aten.hoist_positional_encoding)


@cache
def prompted() -> Program:
    module = Calls(lambda s, x, y, z: s.net(x, y, z), net=randomise(Prompted(), spread=0.3))
    roles: dict[str, Role] = {"y": "coords", "z": "labels"}
    return traced(module, (1, 3, 12, 10), (2, 5, 2), (2, 5), outputs=2, roles=roles)


def debris() -> Program:
    """Something for every onnx pass."""
    program = parsed(
        """
        part (float[n,1000,4] x, float[n,1000,4] z, int64[3] label, float[4] codes) => (float[n,1000,4] y)
        <float[4] scale = {1, 2, 3, 4}, float[4] bias = {1, 2, 3, 4}, float[1] unread = {1}, float[4,4] weight = {
            1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 2, 3, 1, 0, 0, 1}, bool yes = {1}, int64[1] last = {-1}, int64[1] front = {0},
         float eps = {0.001}, float two = {2}, float root = {1.4142135623730951}, float half = {0.5}, float unit = {1},
         int64 place = {1}, int64 depth = {4}, float[2] values = {0, 1}, int64[2] wide = {3, 4}> {
            one = Constant<value_int = 1>()
            f = CastLike(one, x)
            a = Add(x, f)
            b = Add(x, f)
            s = Add(a, b)
            norm = LayerNormalization(s, scale, bias)
            i = Identity(norm)
            first = Shape<start = 0, end = 1>(x)
            rest = Constant<value_ints = [1000, 4]>()
            shape = Concat<axis = 0>(first, rest)
            r = Reshape(i, shape)
            dead = Exp(r)
            mean = ReduceMean(r, last)
            centred = Sub(r, mean)
            square = Pow(centred, two)
            variance = ReduceMean(square, last)
            sum = Add(variance, eps)
            deviation = Sqrt(sum)
            normed = Div(centred, deviation)
            scaled = Div(normed, root)
            error = Erf(scaled)
            more = Add(error, unit)
            product = Mul(normed, more)
            gelu = Mul(product, half)
            mixed = MatMul(gelu, weight)
            later = Add(label, label)
            hot = OneHot(later, depth, values)
            row = Gather(hot, place)
            width = Shape<start = 2>(x)
            column = ReduceSum<keepdims = 1>(hot, last)
            copies = Expand(column, wide)
            both = Add(copies, hot)
            total = ReduceSum<keepdims = 0>(both)
            none = Cast<to = 1>(width)
            shifted = Add(mixed, none)
            weighed = Mul(shifted, total)
            taken = If (yes) <
                then_branch = right () => (float[n,1000,4] p) { p = Add(weighed, row) },
                else_branch = left () => (float[n,1000,4] q) { q = Neg(weighed) }
            >
            inverse = Reciprocal(z)
            shrunk = Mul(taken, inverse)
            lifted = Unsqueeze(codes, front)
            lowered = Squeeze(lifted, front)
            same = Equal(lowered, two)
            mark = Cast<to = 1>(same)
            marked = Mul(shrunk, mark)
            y = Mul(marked, z)
        }""",
        opset=21,
    )
    program = replace(
        program, inputs=tuple(replace(s, role="labels") if s.name == "codes" else s for s in program.inputs)
    )
    assert program.dialect == "onnx"
    return program


def test_the_aten_passes_together() -> None:
    """After all of them the program is one that every converter can still read."""
    before = lively()
    engine = Engine("fast")
    after = engine.run(before, PIPELINE)
    everywhere = {p.name for p in (*PIPELINE, *NPU_PIPELINE, *ROUGH_PIPELINE, *ALTERNATIVES)}
    assert set(aten.__all__) <= everywhere, "a new pass goes into one of the pipelines here"
    idle = {step.name for step in engine.steps if not step.sites}
    assert idle <= {"eliminate_dead"}, "the passes before it clean up after themselves"
    found = counts(after)
    gone = {"batch_norm", "conv_transpose2d", "upsample_bicubic2d", "select", "clone", "fft_fft2", "edgesam_deploy"}
    assert not gone & set(found)
    inputs = sample_inputs(before.inputs, 9)
    expected = run_program(before, inputs)["out0"]
    x = torch.from_numpy(inputs["x"])
    with torch.no_grad():
        assert relative_l2(expected, after.aten.module()(x=x).numpy()) < 1e-5
        core = after.aten.run_decompositions()  # as coremltools and litert-torch begin
        assert relative_l2(expected, core.module()(x=x).numpy()) < 1e-5
    lowered = engine.run(after, (lower_to_onnx(20, 9),))
    assert relative_l2(expected, run_program(lowered, inputs)["out0"]) < 1e-5
    assert engine.run(after, PIPELINE) is after


def test_the_aten_passes_of_npus_together() -> None:
    before = prompted()
    engine = Engine("fast")
    after = engine.run(before, NPU_PIPELINE)
    assert [step.name for step in engine.steps if not step.sites] == []
    assert not {"layer_norm", "linear", "erf", "eq", "upsample_bilinear2d"} & set(counts(after))
    assert engine.run(after, NPU_PIPELINE) is after
    inputs = sample_inputs(before.inputs, 9)
    expected, lowered = run_program(before, inputs), engine.run(after, (lower_to_onnx(20, 9),))
    assert relative_l2(expected["out0"], run_program(lowered, inputs)["out0"]) < 1e-5
    engine = Engine("fast")
    rough = engine.run(after, ROUGH_PIPELINE)
    assert [step.name for step in engine.steps if not step.sites] == []
    assert not {"gt", "sin", "cos"} & set(counts(rough))
    assert engine.run(rough, (*NPU_PIPELINE, *ROUGH_PIPELINE)) is rough


def test_the_onnx_passes_each_find_something() -> None:
    for name in onnx.__all__:
        unproved = ("freeze_dims", "cast_to_half")  # the one on inputs of that size; z's inverses leave half's range
        engine = Engine("off" if name in unproved else "fast")
        engine.run(debris(), (get("onnx", name),))
        assert engine.steps[0].sites > 0, name
