from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from math import prod
from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
RANK = 4
BLOCKS = 8  # blocks that change places in one chain; the search below visits at most 8! orders
SYMBOL = 1_000_003  # a prime that no real size contains: stands for the one symbolic dimension while factors are split
VIEWS = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unflatten.int, aten.flatten.using_ints,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.contiguous.default,
    aten.clone.default,
}  # fmt: skip
PERMUTES = {
    aten.permute.default, aten.transpose.int, aten.t.default, aten.mT.default, aten.numpy_T.default,
    aten.movedim.int, aten.movedim.intlist, aten.swapaxes.default, aten.swapdims.default,
}  # fmt: skip
MOVES = VIEWS | PERMUTES
SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor}
Sizes = tuple[int, ...]


@exact
def limit_rank(program: Program) -> int:
    """Take chains of reshapes and transposes through at most four axes.

        (B, H, W, C) ── (B, n, w, m, w, C) ── swap n w m w ── (B n m, w, w, C)
        (B, H, W, C) ── (B n, w, m, w C) ── swap w, m ── (B n m, w, w, C)

    Why: cutting a map into windows and joining them are 6-D transposes in every SAM encoder, 16 of them in ViT-B, and
    qkv is a 5-D one per block in most. CoreML's neural engine, QNN and most TFLite delegates stop at four axes. Axes
    that stay neighbours in order are one axis and axes of size 1 are none, so 6-D usually is 4-D in disguise; what is
    more becomes the fewest transposes of four axes. Exact: no value is computed. Two rules go before. A piece of an
    axis (q, k, v) is cut off before the transpose instead of after it. Sums of broadcast values (SAM's relative
    positions) merge axes that all summands treat alike. Site = a chain, a cut or a sum.
    """
    with AtenGraph(program) as graph:
        sums = sum(_merge_sum(graph, node) for node in reversed(list(graph.calls(*SUMS))))
        cuts = sum(_cut_first(graph, node) for node in graph.calls(*MOVES))
        chains = sum(_shorten(graph, node) for node in graph.calls(*MOVES))
    return sums + cuts + chains


# --- chains ---


def _shorten(graph: AtenGraph, seed: Node) -> bool:
    """Rewrite the chain around a value of too many axes."""
    if len(shape(seed)) <= RANK:
        return False
    chain = _back(seed)
    while only_reader(chain[-1]) and (reader := next(iter(chain[-1].users))).target in MOVES:
        chain.append(reader)
    while chain and len(shape(chain[-1])) > RANK:
        chain.pop()
    layouts = _layouts(chain) if seed in chain else None
    if layouts is None:
        log.debug("limit_rank: %s is no chain of static reshapes with ends of at most 4 axes", seed.name)
        return False
    sizes = _sizes(chain[-1])
    assert sizes is not None
    with graph.graph.inserting_before(chain[-1]):
        result = _emit(graph, chain[0].args[0], [layout.movement() for layout in layouts], sizes)
    graph.replace(chain[-1], result)
    for node in reversed(chain[:-1]):
        graph.graph.erase_node(node)
    return True


def _back(end: Node) -> list[Node]:
    """The chain that ends in ``end``, from the earliest value of at most four axes on; empty if there is none."""
    chain: list[Node] = [end]
    ahead: Any = end.args[0]
    while ahead.target in MOVES and only_reader(ahead):
        chain.append(ahead)
        ahead = ahead.args[0]
    while chain and len(shape(chain[-1].args[0])) > RANK:
        chain.pop()
    return chain[::-1] or [end]


def _sizes(node: Any) -> Sizes | None:
    """The shape as numbers. One dimension may be a multiple of one symbol; None for anything wilder or empty."""
    sizes = []
    for dim in shape(node):
        if isinstance(dim, int):
            sizes.append(dim)
            continue
        expression = dim.node.expr
        factor = expression / next(iter(expression.free_symbols))
        if not factor.is_Integer:
            return None
        sizes.append(int(factor) * SYMBOL)
    return tuple(sizes) if prod(sizes) % SYMBOL**2 else None


@dataclass(eq=False)
class _Axis:
    size: int


class _Layout:
    """How the axes of a contiguous value lie in one that is made from it: both are lists of groups of the same axes.

    Reshapes split axes as far as they must and regroup them; transposes reorder the groups.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.source = [[_Axis(size)] if size > 1 else [] for size in sizes]
        self.dims = [list(dim) for dim in self.source]

    def regroup(self, sizes: Sizes) -> bool:
        """Group the axes into dimensions of ``sizes``. False if a dimension would have to take half an axis."""
        rest = [axis for dim in self.dims for axis in dim]
        dims: list[list[_Axis]] = []
        for size in sizes:
            dims.append([])
            while size > 1:
                axis = rest.pop(0)
                if axis.size % size == 0 and axis.size > size:
                    rest.insert(0, self._split(axis, size))
                elif size % axis.size:
                    return False
                dims[-1].append(axis)
                size //= axis.size
        self.dims = dims
        return True

    def _split(self, axis: _Axis, outer: int) -> _Axis:
        """Make ``axis`` the outer part of what it was; the inner part is returned."""
        inner = _Axis(axis.size // outer)
        axis.size = outer
        for dim in (*self.source, *self.dims):
            if axis in dim:
                dim.insert(dim.index(axis) + 1, inner)
        return inner

    def drop(self, axis: _Axis) -> None:
        for dim in (*self.source, *self.dims):
            if axis in dim:
                dim.remove(axis)

    def movement(self) -> tuple[Sizes, Sizes]:
        """Sizes of the blocks that move, and the permutation that moves them."""
        source = [axis for dim in self.source for axis in dim]
        where = {id(axis): index for index, axis in enumerate(source)}
        return _merged([axis.size for axis in source], [where[id(axis)] for dim in self.dims for axis in dim])


def _layouts(chain: list[Node]) -> list[_Layout] | None:
    """The chain as layouts one after another; a new one begins where a reshape cuts across transposed axes."""
    values = [chain[0].args[0], *chain]
    sizes = [size for value in values if (size := _sizes(value)) is not None]
    if len(sizes) < len(values) or len(shape(values[0])) > RANK:
        return None
    layouts = [_Layout(sizes[0])]
    for node, size in zip(chain, sizes[1:], strict=True):
        if node.target in PERMUTES:
            dims = layouts[-1].dims
            layouts[-1].dims = [dims[index] for index in _permutation(node)]
        elif not layouts[-1].regroup(size):
            layouts.append(_Layout(size))
    small = all(len(layout.movement()[1]) <= BLOCKS for layout in layouts)
    return layouts if small else None


def _permutation(node: Node) -> list[int]:
    """Which axis of its input each axis of a transpose is, whatever the operator calls it: read from the strides."""
    rank = len(shape(node))
    marked = torch.empty_strided([1] * rank, list(range(rank)), device="meta")
    return list(node.target(marked, *node.args[1:], **node.kwargs).stride())  # type: ignore[operator]


def _merged(sizes: Sequence[int], order: Sequence[int]) -> tuple[Sizes, Sizes]:
    """The same permutation with axes that stay neighbours taken as one: (2, 3, 5), (1, 2, 0) -> (2, 15), (1, 0)."""
    runs: list[list[int]] = []
    for axis in order:
        if runs and runs[-1][-1] + 1 == axis:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    blocks = sorted(runs)
    return tuple(prod(sizes[a] for a in run) for run in blocks), tuple(blocks.index(run) for run in runs)


@cache
def _route(goal: Sizes) -> tuple[Sizes, ...]:
    """Orders to pass through, ``goal`` last, each one transpose of at most four blocks after the one before."""
    start = tuple(range(len(goal)))
    routes: dict[Sizes, tuple[Sizes, ...]] = {start: ()}
    frontier = [start]
    while True:
        for state in frontier:
            if len(_merged(state, _relative(state, goal))[0]) <= RANK:
                return (*routes[state], goal)
        reached = []
        for state in frontier:
            for after in _neighbours(state):
                if after not in routes:
                    routes[after] = (*routes[state], after)
                    reached.append(after)
        frontier = reached


def _neighbours(state: Sizes) -> Iterator[Sizes]:
    """What one transpose makes of ``state``; swaps of two neighbouring blocks come first, the simplest kind."""
    cuts = [(0, *inner, len(state)) for inner in combinations(range(1, len(state)), RANK - 1)]
    for order in sorted(permutations(range(RANK)), key=lambda p: len(_merged(p, p)[0])):
        for cut in cuts:
            yield tuple(axis for block in order for axis in state[cut[block] : cut[block + 1]])


def _relative(state: Sizes, goal: Sizes) -> list[int]:
    return [state.index(axis) for axis in goal]


def _emit(graph: AtenGraph, x: Any, movements: list[tuple[Sizes, Sizes]], sizes: Sizes) -> Node:
    """``x`` after the movements, in the shape ``sizes``; a movement of one block is none."""
    for blocks, goal in movements:
        if len(goal) < 2:
            continue
        state = tuple(range(len(goal)))
        for order in _route(goal):
            now, dims = _merged([blocks[axis] for axis in state], _relative(state, order))
            x = graph.call(aten.permute.default, _reshaped(graph, x, now), list(dims))
            state = order
    return _reshaped(graph, x, sizes)


def _reshaped(graph: AtenGraph, x: Node, sizes: Sizes) -> Node:
    if _sizes(x) == sizes:
        return x
    return graph.call(aten.reshape.default, x, [size if size % SYMBOL else -1 for size in sizes])


# --- cuts ---


def _cut_first(graph: AtenGraph, end: Node) -> bool:
    """x ── (B, N, 3, h, c) ── (3, B, h, N, c) ── entry i    becomes    x[..., i C : (i + 1) C] ── (B, h, N, c)."""
    entries = _entries(end)
    chain = _back(end)
    if not entries or max(len(shape(node)) for node in chain) <= RANK or len(shape(end)) > RANK + 1:
        return False
    layouts = _layouts(chain)
    if layouts is None or len(layouts) > 1:
        return False
    (layout,) = layouts
    (cut, *more) = layout.dims[entries[0].dim] or [_Axis(1)]
    axis = next((a for a, dim in enumerate(layout.source) if dim and dim[0] is cut), None)
    if more or axis is None:
        log.debug("limit_rank: the entries of %s are not adjacent in %s", end.name, chain[0].args[0])
        return False
    width = prod(part.size for part in layout.source[axis][1:])
    if cut.size % SYMBOL == 0 or width % SYMBOL == 0:
        return False
    layout.drop(cut)
    whole = _sizes(end)
    assert whole is not None
    sizes = tuple(size for dim, size in enumerate(whole) if dim != entries[0].dim)
    for entry in entries:
        with graph.graph.inserting_before(entry.node):
            begin = entry.index % cut.size * width
            piece = graph.call(aten.slice.Tensor, chain[0].args[0], axis, begin, begin + width)
            result = _emit(graph, piece, [layout.movement()], sizes)
        graph.replace(entry.node, result)
    for node in (*end.users, *reversed(chain)):  # an unbind, then the chain
        graph.graph.erase_node(node)
    return True


@dataclass(frozen=True)
class _Entry:
    """``node`` reads entry ``index`` along axis ``dim``."""

    node: Node
    dim: int
    index: int


def _entries(end: Node) -> list[_Entry]:
    """What reads ``end``, if that is select or unbind along one axis and nothing else."""
    found: list[_Entry] = []
    for reader in end.users:
        dim = argument(reader, 1, "dim", 0)
        if reader.target == aten.select.int and isinstance(reader.args[2], int):
            found.append(_Entry(reader, dim % len(shape(end)), reader.args[2]))
        elif reader.target == aten.unbind.int and all(item.target is operator.getitem for item in reader.users):
            found += [_Entry(item, dim % len(shape(end)), item.args[1]) for item in reader.users]  # type: ignore[arg-type]
        else:
            return []
    return found if len({entry.dim for entry in found}) == 1 else []


# --- sums ---


def _merge_sum(graph: AtenGraph, root: Node) -> bool:
    """(B, h, w, H, W) + (B, h, w, H, 1) + (B, h, w, 1, W)    becomes    (B, h w, H, W) + (B, h w, H, 1) + ..."""
    if len(shape(root)) <= RANK or not only_reader(root):
        return False
    (reader,) = root.users
    if reader.target not in VIEWS:
        return False
    leaves, inner = _tree(root)
    sizes, shapes = _sizes(root), {leaf: own for leaf in leaves if (own := _sizes(leaf)) is not None}
    movable = all(len(shape(leaf)) <= RANK or (leaf.target in MOVES and only_reader(leaf)) for leaf in leaves)
    if sizes is None or len(shapes) < len(leaves) or not movable:
        return False
    padded = {leaf: (1,) * (len(sizes) - len(own)) + own for leaf, own in shapes.items()}
    groups: list[list[int]] = []
    for axis in (a for a, size in enumerate(sizes) if size > 1):
        alike = groups and all((p[axis] == 1) == (p[groups[-1][0]] == 1) for p in padded.values())
        groups = [*groups[:-1], [*groups[-1], axis]] if alike else [*groups, [axis]]
    if len(groups) > RANK:
        log.debug("limit_rank: the summands of %s differ in %d groups of axes", root.name, len(groups))
        return False
    replaced: dict[Any, Any] = {}
    with graph.graph.inserting_before(root):
        for leaf in leaves:
            replaced[leaf] = _reshaped(graph, leaf, tuple(prod(padded[leaf][a] for a in group) for group in groups))
        for node in inner:
            args = [replaced.get(arg, arg) for arg in node.args]
            replaced[node] = graph.call(node.target, *args, **node.kwargs)  # type: ignore[arg-type]
        result = _reshaped(graph, replaced[root], sizes)  # goes with the chain that it begins
    graph.replace(root, result)
    for node in reversed(inner[:-1]):
        graph.graph.erase_node(node)
    return True


def _tree(root: Node) -> tuple[list[Node], list[Node]]:
    """The leaves of a tree of sums, and its inner nodes, the root last."""
    leaves: list[Node] = []
    inner: list[Node] = []
    for arg in root.args:
        if isinstance(arg, Node) and arg.target in SUMS and only_reader(arg) and len(shape(arg)) > RANK:
            below = _tree(arg)
            leaves, inner = leaves + below[0], inner + below[1]
        elif isinstance(arg, Node):
            leaves.append(arg)
    return list(dict.fromkeys(leaves)), [*inner, root]
