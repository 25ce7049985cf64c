"""Which pass broke a program, and at which node: the first of either, and the smallest sub-graph that shows it.

    pass after pass ── the first whose outputs leave its bound ── values before and after it, from the outputs back

Values correspond where readers that survived the pass read them in the same place, or where they kept their name. From
a wrong output the search goes back through wrong values only, so a node that legitimately computes something else now
(a convolution that took over a norm) is no culprit. Where everything that is read agrees and the result does not, the
fault lies between: that region, before and after, is written as programs that run, with their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import MissingToolkit
from edgesam_deploy.passes.aten_view import AtenView
from edgesam_deploy.passes.correspondence import Region, View, agreement, first_true, partners
from edgesam_deploy.passes.engine import FEW, FLOOR, SEEDS, Pass
from edgesam_deploy.passes.execute import Arrays, relative_l2, run_program
from edgesam_deploy.passes.onnx_view import OnnxView
from edgesam_deploy.passes.program import Program

Kind = Literal["left its bound", "accumulated", "raised", "malformed"]


@dataclass(frozen=True)
class Row:
    """What one pass did: relative L2 to the program before it, and to the program before the pipeline."""

    name: str
    sites: int
    bound: float
    error: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Finding:
    """The culprit. ``node``: the first value, by its name before the pass, that is wrong or that the pass failed on;
    ``now``: the node that stands in for it after the pass; ``region``: the nodes of the sub-graph after the pass.

    ``error`` and ``total`` as in Row, ``node_error`` of the sub-graph alone; None where nothing could run. ``folder``
    holds the sub-graph; ``recipe`` is the lines that run it.
    """

    part: str
    pass_name: str
    kind: Kind
    bound: float
    error: float | None = None
    total: float | None = None
    seed: int | None = None
    node: str | None = None
    now: str | None = None
    node_error: float | None = None
    region: tuple[str, ...] = ()
    message: str = ""
    folder: Path | None = None
    recipe: str = ""

    def sentence(self) -> str:
        """One line for people."""
        where = "" if self.node is None else f" at {self.node}"
        if self.now not in (None, self.node):
            where += f" (now {self.now})"
        if self.error is None:
            return f"{self.part}: pass {self.pass_name} {self.kind}{where}: {self.message}"
        text = f"{self.part}: pass {self.pass_name} {self.kind}{where}: relative L2 {self.error:.2e} where at most "
        text += f"{self.bound:.0e} is declared ({self.total:.2e} since the start of the pipeline)"
        return text if not self.message else f"{text}; {self.message}"


@dataclass(frozen=True)
class Bisection:
    """Every pass that ran, and the finding if one was wrong."""

    part: str
    rows: tuple[Row, ...]
    finding: Finding | None


def bisect(
    program: Program,
    pipeline: Sequence[Pass],
    *,
    out: Path | None = None,
    seeds: Sequence[int] = SEEDS["fast"],
    tolerance: float | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Bisection:
    """Run ``pipeline`` until a pass is wrong, and find where.

    A pass answers for the difference to the program before it, as in the engine: that is the bound it declares, and
    no pass is blamed for what earlier approximations used up. The difference to the start of the pipeline is reported
    beside it; with ``tolerance`` the first pass after which that exceeds it is found too. ``out``: where sub-graphs go.
    """
    inputs = {seed: sample_inputs(program.inputs, seed) for seed in seeds}
    original = known = {seed: run_program(program, values) for seed, values in inputs.items()}
    rows: list[Row] = []
    for rewrite in pipeline:
        progress(f"{program.name}: {rewrite.name}")
        after = program.copy()
        try:
            sites = rewrite(after)
        except MissingToolkit:
            raise
        except Exception as e:  # whatever a pass raises is its fault
            return Bisection(program.name, tuple(rows), _raised(program, rewrite, e, inputs[seeds[0]], out))
        if not sites:
            rows.append(Row(rewrite.name, 0, rewrite.bound))
            continue
        feeds = dict(inputs)
        try:
            _check(after)
            if rewrite.adapt is not None:
                feeds = {seed: rewrite.adapt(program, after, values) for seed, values in inputs.items()}
            found = {seed: run_program(after, values) for seed, values in feeds.items()}
        except Exception as e:  # runtimes have error types of their own
            return Bisection(program.name, tuple(rows), _malformed(after, rewrite, e, feeds, out))
        errors = {seed: difference(known[seed], found[seed]) for seed in seeds}
        totals = {seed: difference(original[seed], found[seed]) for seed in seeds}
        rows.append(Row(rewrite.name, sites, rewrite.bound, _worst(errors), _worst(totals)))
        left = [seed for seed in seeds if not errors[seed] <= rewrite.bound]
        over = [seed for seed in seeds if tolerance is not None and not totals[seed] <= tolerance]
        if left or over:
            seed = (left or over)[0]
            base = Finding(
                program.name, rewrite.name, "left its bound" if left else "accumulated", rewrite.bound, errors[seed],
                totals[seed], seed,
            )  # fmt: skip
            return Bisection(program.name, tuple(rows), _locate(base, program, after, (inputs[seed], feeds[seed]), out))
        program, known, inputs = after, found, feeds
    return Bisection(program.name, tuple(rows), None)


def difference(before: Arrays, after: Arrays) -> float:
    """The worst relative L2 over the outputs, measured as the engine does."""
    return _worst({
        name: relative_l2(value, after[name], FLOOR if value.size > FEW else 1.0)
        if value.dtype == after[name].dtype else float("inf")
        for name, value in before.items()
    })  # fmt: skip


def _worst(errors: dict[int, float] | dict[str, float]) -> float:
    return float(np.max(list(errors.values()), initial=0.0))  # NaN wins


def _check(program: Program) -> None:
    if program.dialect == "aten":
        program.aten.graph.lint()


def view_of(program: Program) -> View:
    """The program's values by name."""
    return AtenView(program) if program.dialect == "aten" else OnnxView(program)


# --- a pass that left its bound --------------------------------------------------------------------------------------


def _locate(
    found: Finding, before: Program, after: Program, inputs: tuple[Arrays, Arrays], out: Path | None
) -> Finding:
    """``found`` with the node and the sub-graph, where the values between inputs and outputs show one."""
    old, new = view_of(before), view_of(after)
    error = found.error if found.error is not None and np.isfinite(found.error) else 1.0
    limit = min(found.bound, error / 2)  # of two halves of a small fault at least one must be seen
    agreed = agreement(old.sketches(inputs[0]), new.sketches(inputs[1]), partners(old, new), limit)
    pairs = [pair for pair in zip(old.outputs, new.outputs, strict=True) if not agreed.is_same(*pair)]
    if not pairs:
        return replace(found, message="only the whole program shows it: value by value it is right")
    was, now = min(pairs, key=lambda pair: new.position(pair[1]))
    region = new.region(now, agreed.stops, agreed.wrong)
    while region.deeper:
        now = min(region.deeper, key=new.position)
        was = agreed.partner(now)
        region = new.region(now, agreed.stops, agreed.wrong)
    named, note = _name(old, new, was, now, agreed.is_same)
    found = replace(found, node=named, now=now, region=tuple(region.nodes), message=note)
    if out is None:
        return found
    earlier = old.region(was, agreed.shared, set())
    try:
        return _dump(found, old, earlier, new, region, inputs, out)
    except Exception as e:  # the finding is worth more than its files
        return replace(found, message=_unwritten(found, e))


def _unwritten(found: Finding, error: Exception) -> str:
    text = f"its sub-graph could not be written ({type(error).__name__}: {str(error).splitlines()[:1]})"
    return f"{found.message}; {text}" if found.message else text


def _name(old: View, new: View, was: str, now: str, same: Callable[[str, str], bool]) -> tuple[str, str]:
    """The culprit by its name before the pass. A reader that is unchanged but reads another value is not at fault: the
    node that it read, and that is gone, is.
    """
    if was in old.nodes and now in new.nodes and old.operator(was) == new.operator(now):
        reads = list(zip(old.reads(was), new.reads(now), strict=False))
        changed = [(b, a) for b, a in reads if b in old.nodes and b not in new.nodes and b != a and not same(b, a)]
        if changed:
            gone, instead = changed[0]
            return gone, f"{now} reads {instead} in its place"
    return was, ""


def _dump(
    found: Finding, old: View, earlier: Region, new: View, region: Region, inputs: tuple[Arrays, Arrays], out: Path
) -> Finding:
    folder = out / f"{found.part}.{found.pass_name}"
    folder.mkdir(parents=True, exist_ok=True)
    expected = old.values(inputs[0], [earlier.end])[earlier.end]
    feeds = new.values(inputs[1], region.inputs)
    np.savez(folder / "inputs_before.npz", **old.values(inputs[0], earlier.inputs))  # type: ignore[arg-type]
    np.savez(folder / "inputs.npz", **feeds)  # type: ignore[arg-type]
    np.savez(folder / "expected.npz", expected=expected)
    old.write(earlier, inputs[0], folder / "before")
    path = new.write(region, inputs[1], folder / "after")
    actual = new.run_piece(path, feeds)
    np.savez(folder / "actual.npz", actual=actual)
    recipe = new.recipe(path)
    (folder / "reproduce.py").write_text(recipe)
    return replace(found, folder=folder, recipe=recipe, node_error=relative_l2(expected, actual))


# --- a pass that fails -----------------------------------------------------------------------------------------------


def _raised(program: Program, rewrite: Pass, error: Exception, inputs: Arrays, out: Path | None) -> Finding:
    """The first node without which the pass does not raise, and the fewest nodes above it that it raises on."""
    message = f"{type(error).__name__}: {error}"
    found = Finding(program.name, rewrite.name, "raised", rewrite.bound, message=message)

    def raises(smaller: Program) -> bool:
        try:
            rewrite(smaller)
        except Exception as e:
            return type(e) is type(error)
        return False

    view = view_of(program)
    names = view.tensors(inputs)
    first = first_true(len(names), lambda index: raises(view.prefix(names[: index + 1])))
    if first is None:
        return found
    node, depth = names[first], 1
    found = replace(found, node=node)
    try:
        while not raises(view.piece(view.near(node, depth), inputs)):
            region = view.near(node, depth)
            if set(region.inputs) <= view.sources:
                return found
            depth += 1
        region = view.near(node, depth)
        found = replace(found, region=tuple(region.nodes))
        if out is None:
            return found
        folder = out / f"{found.part}.{found.pass_name}"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "inputs.npz", **view.values(inputs, region.inputs))  # type: ignore[arg-type]
        path = view.write(region, inputs, folder / "before")
        recipe = view.recipe_of_pass(path, rewrite.run)
        (folder / "reproduce.py").write_text(recipe)
    except Exception as e:  # the finding is worth more than its files
        return replace(found, message=_unwritten(found, e))
    return replace(found, folder=folder, recipe=recipe)


def _malformed(after: Program, rewrite: Pass, error: Exception, inputs: dict[int, Arrays], out: Path | None) -> Finding:
    """The first node that cannot be computed."""
    message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    found = Finding(after.name, rewrite.name, "malformed", rewrite.bound, message=message)
    view = view_of(after)
    for seed, values in inputs.items():
        node = view.first_failing(values)
        if node is None:
            continue
        found = replace(found, node=node, seed=seed, region=(node,))
        if out is None:
            return found
        folder = out / f"{found.part}.{found.pass_name}"
        region = view.near(node, 1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / "inputs.npz", **view.values(values, region.inputs))  # type: ignore[arg-type]
            path = view.write(region, values, folder / "after", runs=False)
            recipe = view.recipe(path)
            (folder / "reproduce.py").write_text(recipe)
        except Exception as e:  # the finding is worth more than its files
            return replace(found, message=_unwritten(found, e))
        return replace(found, folder=folder, recipe=recipe)
    return found
