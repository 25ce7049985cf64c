"""Packages that coremltools wrote: read, checked and run as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import FAMILY
from mil_packages import OPSETS, built, converted, ct, mb, relative_l2
from torch import nn

from edgesam_deploy.capture import capture
from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import EdgeSamDeployError, UnknownName, UnsupportedOperators, UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_on_each
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.coreml.interpreter import TensorType, open_mlpackage


def values(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


class Small(nn.Module):
    """A convolution, a norm, attention over pixels and a linear layer: weights large enough to be compressed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(32)
        self.mix = nn.Linear(32, 64)

    def forward(self, x):
        x = nn.functional.gelu(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.norm(x)
        x = torch.softmax(x @ x.transpose(1, 2) / 6, -1) @ x
        return self.mix(x)


X = values(1, 3, 12, 8)
OUTPUTS = [ct.TensorType(name="y", dtype=np.float32)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """``small("iOS16", half=True)``: the small network as a package, each made once, and what PyTorch gives."""
    made = {}
    module = Small().eval()
    with torch.no_grad():
        wanted = module(torch.from_numpy(X)).numpy()

    def get(opset="iOS17", half=False):
        if (opset, half) not in made:
            path = tmp_path_factory.mktemp("small") / "small.mlpackage"
            made[opset, half] = converted(module, {"x": X}, path, opset, half, outputs=OUTPUTS)
        return made[opset, half], wanted

    return get


@pytest.mark.parametrize("opset", OPSETS)
def test_a_network_gives_what_pytorch_gives(small, opset):
    path, wanted = small(opset)
    model = open_mlpackage(path)
    assert relative_l2(model({"x": X})["y"], wanted) < 2e-6
    assert model.inputs == {"x": TensorType("fp32", (1, 3, 12, 8))}
    assert model.outputs == {"y": TensorType("fp32", (1, 24, 64))}
    assert model.operators()["conv"] == 1
    assert "const" not in model.operators()


def test_half_precision_is_seen_in_the_mode_declared_alone(small):
    path, wanted = small(half=True)
    model = open_mlpackage(path)
    declared, plain = (relative_l2(model.run({"x": X}, mode)["y"], wanted) for mode in ("declared", "fp32"))
    assert plain < declared < 3e-3
    assert plain > 1e-5  # the weights are fp16 in both
    assert model.description == "emulated: MIL interpreter of edgesam-deploy, mode declared"
    assert open_mlpackage(path, mode="fp32")({"x": X})["y"] == pytest.approx(model.run({"x": X}, "fp32")["y"])
    with pytest.raises(UsageError, match="mode 'half'"):
        open_mlpackage(path, mode="half")


def test_every_operation_is_rounded_once(tmp_path):
    """Against the same steps with NumPy's own fp16: products, sums, an overflow, and an input that is fp16 itself."""
    a, b = values(3, 4).astype(np.float16), np.float16(300)

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(3, 4), dtype=ct.converters.mil.mil.types.fp16)],
        opset_version=OPSETS["iOS17"],
    )
    def program(x):
        y = mb.mul(x=x, y=a)
        z = mb.add(x=y, y=b)
        return mb.mul(x=z, y=z, name="squares"), mb.relu(x=y, name="kept"), mb.identity(x=x, name="same")

    x = values(3, 4, seed=1)
    model = open_mlpackage(built(program, tmp_path / "p.mlpackage"))
    got = model.run({"x": x})
    with np.errstate(over="ignore"):
        y = x.astype(np.float16) * a
        z = y + b
        np.testing.assert_array_equal(got["squares"], z * z)
    assert np.isinf(got["squares"]).any()
    np.testing.assert_array_equal(got["kept"], np.maximum(y, 0))
    np.testing.assert_array_equal(got["same"], x.astype(np.float16))
    assert {v.dtype for v in got.values()} == {np.dtype(np.float16)}
    plain = model.run({"x": x}, "fp32")
    wide = x * a.astype(np.float32)
    np.testing.assert_array_equal(plain["squares"], (wide + 300) ** 2)
    assert plain["squares"].dtype == np.float32


def test_arguments_stay_as_they_are_and_results_are_the_callers(small):
    path, _ = small(half=True)
    model, x = open_mlpackage(path), X.copy()
    first = model({"x": x})["y"]
    np.testing.assert_array_equal(x, X)
    kept = first.copy()
    first[...] = 0
    np.testing.assert_array_equal(model({"x": x})["y"], kept)


COMPRESSIONS = {
    "int8": ("iOS16", "linear", {"mode": "linear_symmetric"}),
    "int8 asymmetric": ("iOS16", "linear", {"mode": "linear"}),
    "palettes of 6 bits": ("iOS16", "palette", {"mode": "uniform", "nbits": 6}),
    "palettes of 1 bit": ("iOS16", "palette", {"mode": "uniform", "nbits": 1}),
    "sparse": ("iOS16", "prune", {"target_sparsity": 0.6}),
    "int8 on iOS18": ("iOS18", "linear", {"mode": "linear_symmetric"}),
    "int4 in blocks": (
        "iOS18", "linear", {"mode": "linear", "dtype": "int4", "granularity": "per_block", "block_size": 8},
    ),
    "uint4 per tensor": ("iOS18", "linear", {"mode": "linear", "dtype": "uint4", "granularity": "per_tensor"}),
    "palettes of 3 bits": ("iOS18", "palette", {"mode": "uniform", "nbits": 3}),
    "palettes by groups": (
        "iOS18", "palette",
        {"mode": "uniform", "nbits": 4, "granularity": "per_grouped_channel", "group_size": 8},
    ),
    "sparse on iOS18": ("iOS18", "prune", {"target_sparsity": 0.6}),
    "sparse, then int8": ("iOS18", "prune linear", {"mode": "linear_symmetric"}),
    "sparse, then palettes": ("iOS18", "prune palette", {"mode": "uniform", "nbits": 4}),
    "palettes of int8": ("iOS18", "palette linear", {"mode": "linear_symmetric", "granularity": "per_tensor"}),
}  # fmt: skip


def compressed(path, how, options):
    import coremltools.optimize.coreml as cto

    model = ct.models.MLModel(str(path), skip_model_load=True)
    *before, last = how.split()
    steps = {
        "linear": (cto.OpLinearQuantizerConfig, cto.linear_quantize_weights, {"mode": "linear_symmetric"}),
        "palette": (cto.OpPalettizerConfig, cto.palettize_weights, {"mode": "uniform", "nbits": 4}),
        "prune": (cto.OpMagnitudePrunerConfig, cto.prune_weights, {"target_sparsity": 0.6}),
    }
    for step in (*before, last):
        config, apply, default = steps[step]
        chosen = options if step == last else default
        settings = cto.OptimizationConfig(global_config=config(**chosen, weight_threshold=512))
        model = apply(model, config=settings, **({"joint_compression": True} if step == last and before else {}))
    return model


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_are_those_that_coremltools_restores(small, tmp_path, name):
    import coremltools.optimize.coreml as cto

    opset, how, options = COMPRESSIONS[name]
    path, wanted = small(opset, half=True)
    model = compressed(path, how, options)
    model.save(str(tmp_path / "compressed.mlpackage"))
    cto.decompress_weights(model).save(str(tmp_path / "restored.mlpackage"))
    mine, theirs = (open_mlpackage(tmp_path / f"{kind}.mlpackage") for kind in ("compressed", "restored"))
    assert any(kind.startswith("constexpr_") for kind in mine.operators())
    assert not any(kind.startswith("constexpr_") for kind in theirs.operators())
    got, restored = (model({"x": X})["y"] for model in (mine, theirs))
    np.testing.assert_array_equal(got, restored)
    assert relative_l2(got, wanted) > 1e-4  # it did cost something


def test_functions_share_one_weight_file(small, tmp_path):
    path, wanted = small("iOS18")
    functions = ct.utils.MultiFunctionDescriptor()
    functions.add_function(str(path), src_function_name="main", target_function_name="encode")
    functions.add_function(str(path), src_function_name="main", target_function_name="again")
    functions.default_function_name = "again"
    ct.utils.save_multifunction(functions, str(tmp_path / "both.mlpackage"))
    for name in (None, "encode", "again"):
        model = open_mlpackage(tmp_path / "both.mlpackage", name)
        assert model.function.name == (name or "again")
        assert relative_l2(model({"x": X})["y"], wanted) < 2e-6
    with pytest.raises(UnknownName, match="encode"):
        open_mlpackage(tmp_path / "both.mlpackage", "encoder")


def test_a_dimension_may_vary_within_its_range(tmp_path):
    class Rows(nn.Module):
        def forward(self, x):
            return (x * x.shape[1]).sum(-1)

    rows = torch.export.Dim("n", min=1, max=6)
    exported = torch.export.export(Rows(), (torch.zeros(1, 3, 4),), dynamic_shapes={"x": {1: rows}})
    flexible = ct.Shape(shape=(1, ct.RangeDim(1, 6, default=3), 4))
    ct.convert(
        exported.run_decompositions({}), convert_to="mlprogram", minimum_deployment_target=OPSETS["iOS17"],
        compute_precision=ct.precision.FLOAT32, inputs=[ct.TensorType(name="x", shape=flexible)], outputs=OUTPUTS,
        skip_model_load=True,
    ).save(str(tmp_path / "rows.mlpackage"))  # fmt: skip
    model = open_mlpackage(tmp_path / "rows.mlpackage")
    assert model.inputs["x"].shape == (1, None, 4)
    for n in (1, 3, 6):
        x = values(1, n, 4)
        np.testing.assert_allclose(model({"x": x})["y"], (x * n).sum(-1), rtol=1e-6)
    with pytest.raises(UsageError, match=r"shape \(1, 7, 4\)"):
        model({"x": values(1, 7, 4)})


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_a_picture_comes_in_as_rows_of_rgb(tmp_path, layout):
    class Planes(nn.Module):
        def forward(self, x):
            return x * torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)

    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    image = ct.ImageType(name="x", shape=(1, 3, 4, 6), scale=1 / 64, bias=[0.5, -0.5, 2], color_layout=layout)
    zeros = {"x": np.zeros((1, 3, 4, 6), np.float32)}
    path = converted(Planes(), zeros, tmp_path / "p.mlpackage", half=False, inputs=[image], outputs=OUTPUTS)
    planes = picture[:, :, :: 1 if layout == "RGB" else -1].transpose(2, 0, 1)[None] / np.float32(64)
    wanted = (planes + np.float32([0.5, -0.5, 2]).reshape(1, 3, 1, 1)) * np.float32([1, 10, 100]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(open_mlpackage(path)({"x": picture})["y"], wanted, rtol=1e-6)


def test_inputs_are_checked(small):
    model = open_mlpackage(small()[0])
    for inputs, match in (
        ({}, "takes x"),
        ({"x": X, "y": X}, "takes x"),
        ({"x": X[:, :, :5]}, r"shape \(1, 3, 5, 8\); the model takes fp32\[1, 3, 12, 8\]"),
        ({"x": X.astype(np.complex64)}, "complex64"),
    ):
        with pytest.raises(UsageError, match=match):
            model(inputs)


def test_whole_numbers_are_asked_for(tmp_path):
    @mb.program(
        input_specs=[mb.TensorSpec(shape=(2,), dtype=ct.converters.mil.mil.types.int32)], opset_version=OPSETS["iOS17"]
    )
    def program(k):
        return mb.gather(x=np.arange(12, dtype=np.float32).reshape(4, 3), indices=k, axis=0, name="rows")

    model = open_mlpackage(built(program, tmp_path / "p.mlpackage"))
    np.testing.assert_array_equal(model({"k": np.array([3, 1])})["rows"], [[9, 10, 11], [3, 4, 5]])
    with pytest.raises(UsageError, match=r"float32; the model takes int32\[2\]"):
        model({"k": np.array([3, 1], np.float32)})
    with pytest.raises(EdgeSamDeployError, match="gather rows failed: IndexError"):
        model({"k": np.array([3, 4])})


def test_all_unknown_operators_are_named_at_once(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3))], opset_version=OPSETS["iOS17"])
    def program(x):
        y = mb.random_normal(shape=np.array([2, 3], np.int32))
        z = mb.random_uniform(shape=np.array([2, 3], np.int32))
        w = mb.cond(pred=mb.equal(x=mb.reduce_sum(x=x), y=np.float32(0)), _true_fn=lambda: x, _false_fn=lambda: y)
        return mb.add(x=mb.add(x=z, y=w), y=mb.random_normal(shape=np.array([2, 3], np.int32)), name="out")

    path = built(program, tmp_path / "p.mlpackage")
    with pytest.raises(UnsupportedOperators, match=r"cond \(1\), random_normal \(2\), random_uniform \(1\)") as e:
        open_mlpackage(path)
    assert e.value.exit_code == 5


def test_running_needs_neither_pytorch_nor_coremltools_itself(small, tmp_path):
    path, wanted = small()
    np.savez(tmp_path / "case.npz", x=X, y=wanted)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from edgesam_deploy.targets.coreml.interpreter import open_mlpackage\n"
        "case = np.load(sys.argv[2])\n"
        "y = open_mlpackage(sys.argv[1])({'x': case['x']})['y']\n"
        "assert 'coremltools' not in sys.modules\n"
        "print(np.abs(y - case['y']).max())"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "case.npz")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 1e-5
    assert done.stderr == ""


def family_programs(name):
    """The parts of a tiny model after the aten passes that all targets share, and the model's own results."""
    model = load(name, seed=0, config=FAMILY[name])
    target = make_target("onnx")
    passes = [p for p in target.pipeline(model.config) if p.dialect == "aten" and p.name != "lower_to_onnx"]
    for program in capture(model, target.interface(model.config)):
        inputs = sample_inputs(program.inputs, 5)
        after = Engine(proof="off").run(program, passes)
        yield after, inputs, run_on_each(after, [inputs])[0]


def family_package(program, inputs, path, opset, half):
    types = [
        ct.TensorType(name=s.name, shape=inputs[s.name].shape, dtype=inputs[s.name].dtype.type) for s in program.inputs
    ]
    ct.convert(
        program.aten.run_decompositions({}), convert_to="mlprogram", minimum_deployment_target=OPSETS[opset],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32, inputs=types,
        outputs=[ct.TensorType(name=s.name, dtype=np.float32) for s in program.outputs], skip_model_load=True,
    ).save(str(path))  # fmt: skip
    return open_mlpackage(path)


def check_family(name, opset, half, tmp_path):
    found = Counter()
    # coremltools takes DyT's tanh GELU, a keyword argument in torch.export, for the exact one
    tanh_gelu = name.startswith("edge_sam_dyt")
    for program, inputs, wanted in family_programs(name):
        model = family_package(program, inputs, tmp_path / f"{program.name}.mlpackage", opset, half)
        bound = 6e-3 if half else 6e-4 if tanh_gelu else 5e-6
        for output, got in model(inputs).items():
            assert relative_l2(got, wanted[output]) < bound, f"{program.name} {output}"
        found += model.operators()
    return found


def test_edge_sam_runs(tmp_path):
    assert check_family("edge_sam", "iOS16", False, tmp_path)["conv"] > 30


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "half"), [("iOS16", False), ("iOS17", True), ("iOS18", True)])
@pytest.mark.parametrize("name", FAMILY)
def test_the_family_runs(tmp_path, name, opset, half):
    assert check_family(name, opset, half, tmp_path)
