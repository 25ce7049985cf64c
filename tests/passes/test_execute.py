"""Running programs: what the two runtimes are told, and how constants are laid out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from passes.programs import Calls, parsed, traced

from edgesam_deploy.passes import execute
from edgesam_deploy.passes.execute import relative_l2, run_on_each, run_program


def test_onnx_runtime_leaves_cores_and_memory_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs alternate between the two: threads that spin and an arena that is kept take from the other."""
    given: list[onnxruntime.SessionOptions] = []
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: Any, **others: Any) -> Any:
        given.append(options)
        return real(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    run_program(parsed("part (float[2] x) => (float[2] y) { y = Relu(x) }"), {"x": np.ones(2, np.float32)})
    (options,) = given
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.log_severity_level == 3, "errors, no warnings"


@pytest.mark.parametrize(
    ("shape", "dtype", "moved"),
    [
        ((4, 3, 2, 2), torch.float32, True),
        ((4, 3, 2, 2), torch.int64, False),
        ((4, 3, 2), torch.float32, False),
        ((1, 4, 3, 2, 2), torch.float32, False),
    ],
)
def test_kernels_lie_with_their_channels_last(shape: tuple[int, ...], dtype: torch.dtype, moved: bool) -> None:
    value = torch.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    found = execute.channels_last(value)
    assert torch.equal(found, value)
    assert (found is value) != moved
    if moved:
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert not found.is_contiguous()


def test_constants_that_are_no_tensors_are_left_alone() -> None:
    """torch.export keeps script objects among them."""
    script = object()
    assert execute.channels_last(script) is script


def test_a_kernel_is_what_it_was() -> None:
    program = traced(Calls(lambda s, x: torch.conv2d(x, s.kernel), kernel=torch.randn(4, 3, 2, 2)), (1, 3, 5, 6))
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 6)).astype(np.float32)
    expected = torch.conv2d(torch.from_numpy(x), program.aten.state_dict["kernel"]).numpy()
    np.testing.assert_allclose(run_program(program, {"x": x})["out0"], expected, rtol=1e-5, atol=1e-5)


def test_several_samples() -> None:
    program = parsed("part (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Abs(y) }")
    samples = [{"x": np.full(2, value, np.float32)} for value in (1, 2, 3)]
    found = run_on_each(program, samples)
    assert [(float(f["y"][0]), float(f["z"][0])) for f in found] == [(-1, 1), (-2, 2), (-3, 3)]
    assert run_on_each(program, []) == []


def test_a_floor_is_a_root_mean_square() -> None:
    small = np.full(100, 0.01)
    assert relative_l2(small, small + 0.01) == pytest.approx(1)
    assert relative_l2(small, small + 0.01, 0.1) == pytest.approx(0.1)
    assert relative_l2(small * 100, small * 100 + 0.01, 0.1) == pytest.approx(0.01)
