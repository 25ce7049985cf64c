from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
FORWARD = {aten.fft_fft2.default, aten.fft_fftn.default}
INVERSE = {aten.fft_ifft2.default, aten.fft_ifftn.default}
# a transform over n values scales by n^-e; the e of a forward one by its norm, and by _fft_c2c's number for that
EXPONENT = {None: 0.0, "backward": 0.0, "ortho": 0.5, "forward": 1.0}
C2C_EXPONENT = (0.0, 0.5, 1.0)
SHIFTS = {aten.fft_fftshift.default: 1, aten.fft_ifftshift.default: -1}
CASTS = {aten._to_copy.default, aten.to.dtype}
ROUNDING = 1e-12  # of the largest entry: what float64 sums leave where the exact result is 0, or the same


@exact
def decompose_fft(program: Program) -> int:
    """Write a filter of constant frequencies, there and back by FFT, as products with constant matrices.

        x ── fft2 ── shift ── * mask ── unshift ── ifft2 ── real ── y        y = Re(Ph) x Re(Pw)^T - Im(Ph) x Im(Pw)^T

    Why: no NPU, CoreML or TFLite has an FFT, and no runtime for the edge complex numbers; ONNX gets four DFTs, Slices
    and ScatterND. The mask must be an outer product h w^T of real vectors; then P = F^-1 diag(h) F per axis, built in
    float64, is all that is left. Where a filter keeps frequencies in mirrored pairs, Im(P) is 0 and two of the four
    products go. 12.9 GMAC at 1024 x 1024, 0.35 % of CWSAM's encoder. Exact: 2.6e-6 there, torch.fft itself 8e-7.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.real.default, aten.select.int):
            inverse = _complex_source(node)
            chain = None if inverse is None else _match(graph, inverse)
            if chain is not None:
                _rewrite(graph, node, chain)
                sites += 1
    return sites


class _Chain:
    """From a real value to its filtered spectrum Z, followed backwards: Z[i] = gains[i] V[places[i]] along each axis.

    V is the value in hand. So shifts may come anywhere and need not even cancel; over batch and channels they must.
    """

    def __init__(self, inverse: Node) -> None:
        self.shape = shape(inverse)
        static = {axis: size for axis, size in enumerate(self.shape) if isinstance(size, int)}
        self.places = {axis: torch.arange(size) for axis, size in static.items()}
        self.offsets: dict[int, Any] = dict.fromkeys(range(len(self.shape)), 0)  # rolls of axes of unknown size
        self.axes = (len(self.shape) - 2, len(self.shape) - 1)
        self.gains = {axis: torch.ones(len(self.places[axis]), dtype=torch.float64) for axis in self.axes}
        self.exponent = 0.0
        self.source: Any = None

    def roll(self, axis: int, by: Any) -> None:
        """V is V' rolled: V[j] = V'[j - by]."""
        if axis in self.places:
            self.places[axis] = (self.places[axis] - by) % self.shape[axis]
        else:
            self.offsets[axis] = self.offsets[axis] + by

    def mask(self, rows: Tensor, columns: Tensor) -> None:
        for axis, vector in zip(self.axes, (rows, columns), strict=True):
            self.gains[axis] = self.gains[axis] * vector[self.places[axis]]

    @property
    def in_order(self) -> bool:
        """Whether batch and channels are where they were."""
        known = {a: p for a, p in self.places.items() if a not in self.axes}
        return all(torch.equal(p, torch.arange(len(p))) for p in known.values()) and all(
            str(offset) == "0" for offset in self.offsets.values()
        )

    def matrix(self, axis: int) -> Tensor:
        """(n, n), complex: from the values along an axis to the filtered ones."""
        size = self.shape[axis]
        index = torch.arange(size)
        angles = (index[:, None] * index % size).double() * (-2 * torch.pi / size)  # whole turns are taken off exactly
        transform = torch.polar(torch.ones_like(angles), angles)
        filtered = self.gains[axis][:, None] * transform[self.places[axis]]
        result: Tensor = transform.conj() @ filtered * float(size) ** -self.exponent
        return result


def _complex_source(node: Node) -> Node | None:
    """The complex value whose real part ``node`` is, if nothing else reads it."""
    source = node.args[0]
    if node.target == aten.select.int:
        assert isinstance(source, Node)
        pair = source.target == aten.view_as_real.default and only_reader(source)
        if not pair or argument(node, 1, "dim") not in (-1, len(shape(source)) - 1) or argument(node, 2, "index") != 0:
            return None
        source = source.args[0]
    wanted = isinstance(source, Node) and source.meta["val"].is_complex() and only_reader(source)
    return source if wanted else None  # type: ignore[return-value]


def _match(graph: AtenGraph, inverse: Node) -> _Chain | None:
    """The filter that ends in the transform ``inverse``, or None with the reason logged."""
    exponent = _exponent(inverse, forward=False)
    if exponent is None or not all(isinstance(size, int) for size in shape(inverse)[-2:]):
        return None
    chain = _Chain(inverse)
    node = _joined(inverse.args[0])
    while node is not None:
        forward = _exponent(node, forward=True)
        if forward is not None:
            chain.exponent, chain.source = exponent + forward, _real(node.args[0])
            if chain.source is not None and chain.in_order and same_shape(chain.source, inverse):
                return chain
            break
        node = _joined(_before(graph, node, chain))
    log.debug("decompose_fft: %s does not end a separable constant filter of a real value", inverse.name)
    return None


def _exponent(node: Node, *, forward: bool) -> float | None:
    """e of the scale n^-e if the node transforms the last two axes in this direction, without padding or cropping."""
    if node.target == aten._fft_c2c.default:
        dims, norm = argument(node, 1, "dim"), argument(node, 2, "normalization")
        found = C2C_EXPONENT[norm] if argument(node, 3, "forward") is forward else None
        size = None
    elif node.target in (FORWARD if forward else INVERSE):
        plane = [-2, -1] if "fft2" in str(node.target) else None
        size, dims, norm = (
            argument(node, i, n, d) for i, n, d in ((1, "s", None), (2, "dim", plane), (3, "norm", None))
        )
        found = EXPONENT[norm] if forward else 1 - EXPONENT[norm]
    else:
        return None
    rank = len(shape(node))
    axes = [dim % rank for dim in (range(rank) if dims is None else dims)]
    kept = size is None or list(size) == [shape(node.args[0])[axis] for axis in axes]
    return found if sorted(axes) == [rank - 2, rank - 1] and kept else None


def _joined(node: Any) -> Node | None:
    """A value with one reader; one that was taken apart and put together again counts as that."""
    if not isinstance(node, Node) or not only_reader(node):
        return None
    if node.target != aten.complex.default:
        return node
    real, imaginary = node.args
    whole = real.args[0] if isinstance(real, Node) and real.target == aten.real.default else None
    same = isinstance(imaginary, Node) and imaginary.target == aten.imag.default and imaginary.args[0] is whole
    alone = same and only_reader(real) and only_reader(imaginary)  # type: ignore[arg-type]
    return whole if alone and isinstance(whole, Node) and len(whole.users) == 2 else None


def _before(graph: AtenGraph, node: Node, chain: _Chain) -> Any:
    """Take one step back: note in the chain what ``node`` does, and return what it reads. None for anything else."""
    rank, dims = len(chain.shape), argument(node, 1, "dim")
    if node.target in SHIFTS:
        for dim in dims or range(rank):
            chain.roll(dim % rank, SHIFTS[node.target] * (chain.shape[dim] // 2))
        return node.args[0]
    if node.target == aten.roll.default and argument(node, 2, "dims"):
        for by, dim in zip(argument(node, 1, "shifts"), argument(node, 2, "dims"), strict=True):
            chain.roll(dim % rank, by)
        return node.args[0]
    if node.target == aten.index_select.default:  # what a shift decomposes to
        index, axis = graph.constant(node.args[2]), dims % rank
        if index is None or axis not in chain.places or len(index) != chain.shape[axis]:
            return None
        chain.places[axis] = index[chain.places[axis]]
        return node.args[0]
    if node.target == aten.mul.Tensor:
        for mask, other in (node.args, node.args[::-1]):
            value = (
                torch.tensor(float(mask), dtype=torch.float64)
                if isinstance(mask, (int, float))
                else graph.constant(mask)
            )
            vectors = None if value is None else _separated(value, chain.shape)
            if vectors is not None:
                chain.mask(*vectors)
                return other
    return None


def _separated(mask: Tensor, full: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """Two vectors whose outer product the mask is, the same for all channels."""
    if mask.is_complex() or mask.dim() > len(full):
        return None
    planes = mask.double().reshape(-1, *(1, 1, *mask.shape)[-2:])
    plane = planes[0].expand(full[-2:])
    pivot = int(plane.abs().argmax())
    row, column = divmod(pivot, plane.shape[1])
    scale = plane[row, column]
    rows, columns = plane[:, column], plane[row] / (scale if scale else 1)
    # the tolerance: a float32 mask that is a product of float32 vectors has been rounded
    near = (torch.outer(rows, columns) - plane).abs().max() <= 1e-7 * scale.abs() and bool((planes == planes[0]).all())
    return (rows, columns) if near else None


def _real(node: Any) -> Node | None:
    """The real value behind the argument of a transform."""
    if node.target in CASTS and node.meta["val"].is_complex():
        node = node.args[0]
    return node if node.meta["val"].dtype.is_floating_point else None


def _rewrite(graph: AtenGraph, node: Node, chain: _Chain) -> None:
    down, across = (chain.matrix(axis) for axis in chain.axes)
    known: list[tuple[Tensor, Node]] = []

    def constant(name: str, matrix: Tensor) -> Node:
        """A square filter has Re(Ph) = Re(Pw)^T and Im(Ph) = -Im(Pw)^T: one constant each."""
        for other, found in known:
            if other.shape == matrix.shape and _negligible(other - matrix, matrix):
                return found
        added = graph.add_constant(name, matrix.to(node.meta["val"].dtype))
        known.append((matrix, added))
        return added

    pairs = [
        (f"{node.name}_{part}", h, w)
        for part, h, w in (("re", down.real, across.real.T), ("im", down.imag, -across.imag.T))
    ]
    if _negligible(down.imag, down.real) or _negligible(across.imag, across.real):
        del pairs[1]
    constants = [(constant(f"{name}_rows", h), constant(f"{name}_columns", w)) for name, h, w in pairs]
    with graph.graph.inserting_before(node):
        products = []
        for rows, columns in constants:
            wide = graph.call(aten.matmul.default, chain.source, columns)
            products.append(graph.call(aten.matmul.default, rows, wide))
        result = products[0] if len(products) == 1 else graph.call(aten.add.Tensor, *products)
    graph.replace(node, result)


def _negligible(part: Tensor, whole: Tensor) -> bool:
    return bool(part.abs().max() <= ROUNDING * whole.abs().max())
