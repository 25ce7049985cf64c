"""From PyTorch's dialect to ONNX's, for every opset the target offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.capture import trace
from edgesam_deploy.contract import TensorSpec, sample_inputs
from edgesam_deploy.errors import PassError
from edgesam_deploy.passes import onnx as onnx_passes
from edgesam_deploy.passes.aten import fold_batch_norm, merge_parallel_convs
from edgesam_deploy.passes.engine import EXACT, Engine
from edgesam_deploy.passes.execute import relative_l2
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program
from edgesam_deploy.targets.onnx import IR_VERSIONS

CLEAN = (
    onnx_passes.legalize_cast_like, onnx_passes.canonicalize_reshape, onnx_passes.fold_constants,
    onnx_passes.eliminate_identity, onnx_passes.eliminate_common, onnx_passes.eliminate_dead,
    onnx_passes.canonicalize_names,
)  # fmt: skip


class Net(nn.Module):
    """One of everything the models are made of: convolutions both ways, norms, attention, resizing, comparing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.depthwise(F.gelu(self.conv(image), approximate="tanh"))) * torch.sigmoid(image.mean())
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        batch, count = points.shape[:2]
        prompts = torch.cat([points.sin(), points.cos(), (points > 0.5).float(), points], -1)
        tokens = torch.cat([tokens.expand(batch, -1, -1), prompts], 1)
        q, k, v = self.qkv(tokens).reshape(batch, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        tokens = ((q @ k.transpose(2, 3) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
        image_tokens, prompt_tokens = tokens[:, : x.shape[2] * x.shape[3]], tokens[:, -count:]
        grid = image_tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        return F.interpolate(self.up(grid), scale_factor=2, mode="bilinear"), prompt_tokens.softmax(-1).reshape(
            batch, -1
        )


def net(points: int | str = 3, batch: int | str = 1) -> tuple[nn.Module, Program]:
    module = randomise(Net())
    inputs = (TensorSpec("image", (1, 3, 8, 12)), TensorSpec("points", (batch, points, 2)))
    outputs = (TensorSpec("masks", (batch, 4, 16, 24)), TensorSpec("scores", (batch, "n")))
    return module, trace("mask_decoder", module, inputs, outputs)


def check(program: Program, module: nn.Module, seed: int) -> None:
    inputs = sample_inputs(program.inputs, seed)
    session = onnxruntime.InferenceSession(
        ir.to_proto(program.onnx).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    for result, tensor in zip(session.run(["masks", "scores"], inputs), expected, strict=True):
        assert relative_l2(tensor.numpy(), result) < EXACT


@pytest.mark.parametrize("opset", IR_VERSIONS)
def test_every_opset(opset: int) -> None:
    module, program = net()
    lower = lower_to_onnx(opset, IR_VERSIONS[opset])
    assert (lower.name, lower.dialect, lower.is_exact) == ("lower_to_onnx", "aten", True)
    engine = Engine("fast")
    after = engine.run(program, (lower,))
    assert engine.steps[0].sites == len(after.onnx.graph) == sum(counts(after).values())
    model = ir.to_proto(after.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.graph.name) == (IR_VERSIONS[opset], "mask_decoder")
    assert {(o.domain, o.version) for o in model.opset_import} == {("", opset)}
    assert [v.name for v in model.graph.input] == ["image", "points"]
    assert [v.name for v in model.graph.output] == ["masks", "scores"]
    check(after, module, 7)


def test_sites_are_counted_once() -> None:
    """It ends the aten dialect: a second time has nothing to lower, and says so as a failure."""
    _, program = net()
    after = Engine("off").run(program, (lower_to_onnx(20, 9),))
    assert after.dialect == "onnx"
    assert program.dialect == "aten"


def test_dynamic_sizes_through_the_whole_onnx_pipeline() -> None:
    module, program = net("num_points", "batch")
    engine = Engine("fast")
    after = engine.run(program, (lower_to_onnx(20, 9), *CLEAN))
    assert all(step.error is None or step.error <= step.bound for step in engine.steps)
    model = ir.to_proto(after.onnx)
    onnx.checker.check_model(model, full_check=True)
    for seed in (1, 2):
        check(after, module, seed)
    dims = {d.dim_param for v in [*model.graph.input, *model.graph.output, *model.graph.value_info]
            for d in v.type.tensor_type.shape.dim if d.dim_param}  # fmt: skip
    assert {"batch", "num_points"} <= dims
    assert not [d for d in dims if d.startswith("s") and d[1:].isdigit()], "no symbol of the tracer is left"
    assert "CastLike" not in counts(after)
    data = model.SerializeToString()
    for word in (b"pkg.torch", b".py", str(Path(__file__).parents[2]).encode(), b"site-packages"):
        assert word not in data
    again = Engine("off")
    again.run(after, CLEAN)
    assert [(s.name, s.sites) for s in again.steps if s.sites] == [], "the pipeline is at rest"


def test_two_builds_give_the_same_bytes() -> None:
    def build() -> bytes:
        _, program = net("num_points", "batch")
        after = Engine("off").run(program, (lower_to_onnx(20, 9), *CLEAN))
        return ir.to_proto(after.onnx).SerializeToString(deterministic=True)

    assert build() == build()


def lowered(function: Any, *names: str, **children: Any) -> Program:
    program = traced(Calls(function, **children), (2, 3), outputs=len(names))
    program.outputs = tuple(TensorSpec(name, ()) for name in names)
    after = Engine("fast").run(program, (lower_to_onnx(20, 9),))
    onnx.checker.check_model(ir.to_proto(after.onnx), full_check=True)
    assert [v.name for v in after.onnx.graph.inputs] == ["x"]
    assert [v.name for v in after.onnx.graph.outputs] == list(names)
    assert all(v.producer() is not None for v in after.onnx.graph.outputs), "computed, each by a node of its own"
    for rewrite in CLEAN:
        after = Engine("fast").run(after, (rewrite,))
    assert [v.name for v in after.onnx.graph.outputs] == list(names)
    return after


def test_an_output_that_is_the_input() -> None:
    lowered(lambda _, x: (x, x.relu()), "same", "relu")


def test_one_value_as_two_outputs() -> None:
    def function(_: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.relu()
        return y, y

    lowered(function, "first", "second")


def test_an_output_that_is_constant() -> None:
    lowered(lambda s, x: (x + s.table, s.table, torch.arange(4)), "sum", "table", "range", table=torch.randn(3))


def test_an_output_called_as_another_value_is() -> None:
    """``relu_1`` is what the tracer calls the second relu."""
    lowered(lambda _, x: (x.relu().exp(), x.relu().sin(), x.sigmoid()), "relu_1", "sigmoid", "exp")


def test_the_exporters_warnings_stay_inside(
    recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    lowered(lambda _, x: x + 1, "y")
    assert not [w for w in recwarn if "onnx" in str(w.message).lower()]
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_lowered_names_the_pass() -> None:
    program = traced(Calls(lambda _, x: torch.linalg.svdvals(x)), (3, 3))
    with pytest.raises(PassError, match="lower_to_onnx failed on part"):
        Engine("off").run(program, (lower_to_onnx(20, 9),))


def test_rewriting_before_lowering() -> None:
    """Constants that a pass added come out as initialisers under the names it gave."""
    module = Calls(
        lambda s, x: s.norm(s.a(x)) + s.b(x) + x, a=nn.Conv2d(4, 4, 3, padding=1, groups=4), norm=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 4, 1, groups=4),
    )  # fmt: skip
    program = traced(randomise(module), (1, 4, 5, 6))
    program = rewritten(rewritten(program, fold_batch_norm, 1), merge_parallel_convs, 1)
    after = Engine("fast").run(program, (lower_to_onnx(20, 9),))
    assert counts(after) == {"Conv": 1}
    assert {name.rsplit(".", 1)[1] for name in after.onnx.graph.initializers} == {"weight", "bias"}


@pytest.mark.parametrize(
    ("function", "times"),
    [(lambda _, x: 1 - x.relu(), 1), (lambda _, x: (x > 0).to(torch.float32), 1), (lambda _, x: x.relu() * 2, 0)],
)
def test_only_what_has_no_translation_is_decomposed(monkeypatch, function, times):
    """``rsub`` and ``to`` have none: the whole program is traced again for them."""
    done = []
    decompose = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *a, **k: done.append(1) or decompose(*a, **k)
    )
    program = traced(Calls(function), (2, 3))
    done.clear()
    Engine("fast").run(program, [lower_to_onnx(18, 8)])  # which proves it
    assert len(done) == times


def test_the_table_says_so_before_anything_is_exported(monkeypatch):
    """Else the export without decomposing would be tried in vain first."""
    exported = []
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: exported.append(1) or export(*a, **k))
    Engine("off").run(traced(Calls(lambda _, x: 1 - x.relu()), (2, 3)), [lower_to_onnx(18, 8)])
    assert exported == [1]


def test_translations_are_gathered_once_for_an_opset(monkeypatch):
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    original, gathered = vars(ONNXRegistry)["from_torchlib"], []

    def gather(cls, *args, **named):
        gathered.append((args, named))
        return original.__func__(cls, *args, **named)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", classmethod(gather))
    counted = vars(ONNXRegistry)["from_torchlib"]
    for opset in (18, 18, 20):
        lower_to_onnx(opset, IR_VERSIONS[opset])(traced(nn.Sequential(nn.ReLU()), (2, 3)))
    assert len(gathered) == 2
    assert vars(ONNXRegistry)["from_torchlib"] is counted  # other people's exports are theirs


def test_what_works_in_place_is_traced_again():
    """The table leaves ``copy_`` out, and nobody reads its result: as it is written, what it copies would be lost."""

    def function(_: Calls, x: Tensor) -> Tensor:
        y = x.clone()
        y.copy_(x * 3)
        return y * 2

    Engine("fast").run(traced(Calls(function), (2, 3)), [lower_to_onnx(18, 8)])  # which proves it
