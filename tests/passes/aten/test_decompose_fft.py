"""Filters by FFT become products with constant matrices where their mask allows it, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor
from torch.fft import fft2, fftn, fftshift, ifft2, ifftn, ifftshift

from edgesam_deploy.model.cwsam.fft_prompts import LowPass
from edgesam_deploy.passes.aten import decompose_fft, eliminate_identity, fold_constants
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

HEIGHT, WIDTH = 8, 10
SHAPE = (2, 3, HEIGHT, WIDTH)
FOUR = {"matmul": 4, "add": 1}


def box(top: int = 2, bottom: int = 6, left: int = 2, right: int = 8) -> Tensor:
    """1 in a rectangle of frequencies; the default has no mirror image along either axis, shifted or not."""
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[top:bottom, left:right] = 1
    return mask


def program(function: Callable[..., Any], shape: tuple[int | str, ...] = SHAPE, mask: Tensor | None = None) -> Program:
    return traced(Calls(function, mask=box() if mask is None else mask), shape)


def shifted(s: Any, x: Tensor) -> Tensor:
    return ifft2(ifftshift(fftshift(fft2(x)) * s.mask)).real


def test_cwsams_low_pass() -> None:
    """As this package writes it; lowered to ONNX it is four products."""
    after = rewritten(traced(LowPass(32, 5), (1, 3, 32, 32)), decompose_fft, 1)
    assert counts(after) == {**FOUR, "abs": 1}
    assert len(after.aten.state_dict) == 2, "the same matrices for rows and columns"
    lowered = Engine("fast").run(after, (lower_to_onnx(20, 9),))
    assert counts(lowered) == {"MatMul": 4, "Add": 1, "Abs": 1}


@pytest.mark.parametrize(
    "join",
    [
        lambda z: torch.complex(z.real, 2 * z.imag),
        lambda z: torch.complex(z.imag, z.real),
        lambda z: torch.complex(z.abs(), z.imag),
        lambda z: torch.complex(z.real, z.abs()),
        lambda z: torch.complex(z.real, z.imag) + z.real.abs().sum(),
    ],
    ids=["scaled", "swapped", "another real part", "another imaginary part", "read beside"],
)
def test_a_spectrum_that_is_not_put_together_as_it_was(join: Callable[[Tensor], Tensor]) -> None:
    def function(s: Any, x: Tensor) -> Tensor:
        return ifft2(join(fft2(x)) * s.mask).real

    rewritten(program(function), decompose_fft, 0)


def test_as_the_reference_writes_it() -> None:
    """Shifts over all axes, a mask of the picture's full shape, real and imaginary part taken apart in between."""

    def function(s: Any, x: Tensor) -> Tensor:
        spectrum = fftshift(fft2(x, norm="forward")) * s.mask
        spectrum = ifftshift(torch.complex(spectrum.real, spectrum.imag))
        return ifft2(spectrum, norm="forward").real.abs()

    after = rewritten(program(function, mask=box().expand(SHAPE).clone()), decompose_fft, 1)
    assert counts(after) == {**FOUR, "abs": 1}


NORMS = [None, "backward", "ortho", "forward"]


@pytest.mark.parametrize("there", NORMS)
@pytest.mark.parametrize("back", NORMS)
def test_norms(there: str | None, back: str | None) -> None:
    before = program(lambda s, x: ifft2(fft2(x, norm=there) * s.mask, norm=back).real)
    assert counts(rewritten(before, decompose_fft, 1)) == FOUR


PAIRS = [st.tuples(st.integers(low, 9), st.integers(low, 9)) for low in (1, -9)]


@given(PAIRS[0], st.integers(0, 2**18 - 1), PAIRS[1])
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_separable_mask(size: tuple[int, int], bits: int, by: tuple[int, int]) -> None:
    """Any set of rows and columns, odd sizes, shifts that nothing undoes; NumPy in float64 is the oracle."""
    rows, columns = (torch.tensor([bits >> (i + 9 * axis) & 1 for i in range(size[axis])]) for axis in (0, 1))
    mask = torch.outer(rows, columns).bool()
    before = traced(
        Calls(lambda s, x: ifft2(torch.roll(fftshift(fft2(x), (-2, -1)) * s.mask, by, (2, 3))).real, mask=mask),
        (2, 3, *size),
    )
    after = rewritten(before, decompose_fft, 1)
    assert set(counts(after)) <= {"matmul", "add"}
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    spectrum = np.fft.fftshift(np.fft.fft2(x.astype(np.float64)), (-2, -1)) * mask.numpy()
    expected = np.fft.ifft2(np.roll(spectrum, by, (2, 3))).real
    np.testing.assert_allclose(run_program(after, {"x": x})["out0"], expected, atol=2e-6)


def test_mirrored_frequencies_need_two_products() -> None:
    mask = box(3, 6, 4, 7)  # about the zero frequency at (4, 5)
    assert counts(rewritten(program(shifted, mask=mask), decompose_fft, 1)) == {"matmul": 2}
    assert counts(rewritten(program(shifted, mask=box(2, 6, 3, 8)), decompose_fft, 1)) == {"matmul": 2}, (
        "one axis is enough"
    )
    assert counts(rewritten(program(shifted), decompose_fft, 1)) == FOUR


def test_the_constants_are_those_of_float64() -> None:
    """At 512 the angles' products are large; a matrix made in float32 would be off by 1e-4."""
    after = rewritten(traced(LowPass(512, 128), (1, 1, 512, 512)), decompose_fft, 1)
    found = after.aten.state_dict["real_re_rows"].double()
    kept = torch.zeros(512, dtype=torch.float64)
    kept[:128], kept[-128:] = 1, 1
    circulant = torch.fft.ifft(kept).real
    index = torch.arange(512)
    torch.testing.assert_close(found, circulant[(index[:, None] - index) % 512], atol=1e-7, rtol=0)


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "shifts of the plane": lambda s, x: ifft2(ifftshift(fftshift(fft2(x), (-2, -1)) * s.mask, (2, 3))).real,
    "shifts of everything": shifted,
    "rolls": lambda s, x: ifft2(torch.roll(torch.roll(fft2(x), 3, 2) * s.mask, -3, 2)).real,
    "fftn": lambda s, x: ifftn(fftn(x, dim=(-2, -1)) * s.mask, dim=(-1, -2)).real,
    "size given": lambda s, x: ifft2(fft2(x, s=(HEIGHT, WIDTH)) * s.mask, s=(HEIGHT, WIDTH)).real,
    "mask first": lambda s, x: ifft2(s.mask * fft2(x)).real,
    "boolean mask": lambda s, x: ifft2(fft2(x) * s.mask.bool()).real,
    "weights": lambda s, x: ifft2(fft2(x) * (s.mask * torch.linspace(0.1, 1, WIDTH))).real,
    "one axis": lambda s, x: ifft2(fft2(x) * s.mask[:, 3:4]).real,
    "two masks": lambda s, x: ifft2(ifftshift(fftshift(fft2(x) * s.mask) * s.mask) * 0.5).real,
    "ortho": lambda s, x: ifft2(fft2(x, norm="ortho") * s.mask, norm="ortho").real,
    "forward": lambda s, x: ifft2(fft2(x, norm="forward") * s.mask, norm="forward").real,
    "no mask": lambda _, x: ifft2(fft2(x)).real,
    "view_as_real": lambda s, x: torch.view_as_real(ifft2(fft2(x) * s.mask))[..., 0],
}


@pytest.mark.parametrize("case", FORMS)
def test_forms(case: str) -> None:
    before = program(lambda s, x: FORMS[case](s, x))
    if case in ("boolean mask", "weights", "one axis"):
        before = Engine("off").run(before, (eliminate_identity, fold_constants))
    assert set(counts(rewritten(before, decompose_fft, 1))) <= {"matmul", "add"}


@pytest.mark.parametrize("case", ["shifts of everything", "shifts of the plane", "view_as_real", "ortho", "forward"])
def test_decomposed(case: str) -> None:
    """What PyTorch's own decompositions leave: _fft_c2c, and shifts as gathers along an axis."""
    before = program(lambda s, x: FORMS[case](s, x))
    before.body = before.aten.run_decompositions()
    assert "_fft_c2c" in counts(before)
    before = Engine("off").run(before, (fold_constants,))
    assert set(counts(rewritten(before, decompose_fft, 1))) <= {"matmul", "add"}


def test_decomposed_norms_that_do_not_cancel() -> None:
    before = program(lambda s, x: ifft2(fft2(x, norm="ortho") * s.mask, norm="backward").real)
    before.body = before.aten.run_decompositions()
    before = Engine("off").run(before, (fold_constants,))
    rewritten(before, decompose_fft, 1)


def test_dynamic_batch() -> None:
    """The shift of a batch of unknown size is recognised as undone."""
    assert counts(rewritten(program(shifted, ("batch", 3, HEIGHT, WIDTH)), decompose_fft, 1))["matmul"] == 4


def test_planes_without_batch() -> None:
    before = program(lambda s, x: ifftn(fftn(x) * s.mask).real, (HEIGHT, WIDTH))
    assert counts(rewritten(before, decompose_fft, 1))["matmul"] == 4


def test_double_precision_stays() -> None:
    before = program(lambda s, x: ifft2(fft2(x.double()) * s.mask).real.float())
    after = rewritten(before, decompose_fft, 1)
    assert {value.dtype for value in after.aten.state_dict.values()} == {torch.float64}


def spectrum_is_read(s: Any, x: Tensor) -> Tensor:
    spectrum = fft2(x) * s.mask
    return ifft2(spectrum).real + spectrum.abs()


def disc() -> Tensor:
    y, x = torch.meshgrid(torch.arange(HEIGHT) - 4, torch.arange(WIDTH) - 5, indexing="ij")
    return (y**2 + x**2 < 8).float()


REFUSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "disc": lambda s, x: ifft2(ifftshift(fftshift(fft2(x)) * s.disc)).real,
    "high-pass": lambda s, x: ifft2(fft2(x) * s.high).real,
    "mask per channel": lambda s, x: ifft2(fft2(x) * s.channels).real,
    "mask computed": lambda s, x: ifft2(fft2(x) * (x > 0)).real,
    "complex mask": lambda s, x: ifft2(fft2(x) * s.complex).real,
    "magnitude": lambda s, x: ifft2(fft2(x) * s.mask).abs(),
    "imaginary part": lambda s, x: ifft2(fft2(x) * s.mask).imag,
    "second of the pair": lambda s, x: torch.view_as_real(ifft2(fft2(x) * s.mask))[..., 1],
    "spectrum is read": spectrum_is_read,
    "complex picture": lambda s, x: ifft2(fft2(torch.complex(x, x)) * s.mask).real,
    "channels stay shifted": lambda s, x: ifft2(fftshift(fft2(x)) * s.mask).real,
    "other axes": lambda s, x: ifft2(fft2(x, dim=(0, 1)), dim=(0, 1)).real,
    "three axes": lambda s, x: ifftn(fftn(x, dim=(1, 2, 3)) * s.mask, dim=(1, 2, 3)).real,
    "padded": lambda s, x: ifft2(fft2(x, s=(16, 16))).real,
    "cropped": lambda s, x: ifft2(fft2(x) * s.mask, s=(4, 4)).real,
    "twice forward": lambda s, x: fft2(fft2(x) * s.mask).real,
    "computed places": lambda s, x: ifft2(fft2(x).index_select(2, x[0, 0, :, 0].argsort())).real,
    "half of the places": lambda s, x: ifft2(fft2(x).index_select(2, s.even)).real,
    "sum of spectra": lambda s, x: ifft2(fft2(x) * s.mask + 1.0).real,
    "parts swapped": lambda s, x: ifft2(torch.complex((y := fft2(x)).imag, y.real)).real,
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    module = Calls(
        lambda s, x: REFUSED[case](s, x),
        mask=box(), disc=disc(), high=1 - box(), channels=torch.rand(3, 1, 1), complex=box() + 0j,
        even=torch.arange(0, HEIGHT, 2),
    )  # fmt: skip
    rewritten(traced(module, SHAPE), decompose_fft, 0)


def test_refuses_a_mask_of_more_pictures() -> None:
    """One picture becomes two; a product of matrices alone would leave it one."""
    rewritten(program(shifted, (1, 3, HEIGHT, WIDTH), box().expand(SHAPE).clone()), decompose_fft, 0)


def test_refuses_a_plane_of_unknown_size() -> None:
    rewritten(traced(Calls(lambda _, x: ifft2(fft2(x)).real), (1, 3, "height", 8)), decompose_fft, 0)
