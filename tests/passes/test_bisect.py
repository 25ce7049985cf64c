"""Passes broken on purpose are found, at the right node, with a small sub-graph that shows the same from the file.

One file, above the usual length: every test breaks one more thing in the same two programs.
"""

from __future__ import annotations

import contextlib
import io
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, parsed, randomise, traced
from torch import Tensor, nn

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import MissingToolkit
from edgesam_deploy.passes import aten as aten_passes
from edgesam_deploy.passes import onnx as onnx_passes
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.bisect import Finding, bisect, view_of
from edgesam_deploy.passes.correspondence import Sketch
from edgesam_deploy.passes.engine import SEEDS, Pass, adapting, approximate, exact
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.onnx.graph import replace_value
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
CLEAN = (aten_passes.fold_batch_norm, aten_passes.eliminate_dead)


class Net(nn.Module):
    """Two convolutions with norms, a subtraction, a branch on a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU())
        self.gain = nn.Parameter(torch.randn(8, 1, 1))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(a) * self.gain
        c = (a.sin() - b.cos()).flatten(2).transpose(1, 2)
        return F.softmax(self.last(c), -1)


def program() -> Program:
    """Weights small enough that rounding is not amplified to where a bound would notice."""
    module = randomise(Calls(lambda s, x: s.net(x), net=Net()), spread=0.3)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.mul_(1.0 if "gain" in name else 0.2)
    return traced(module, (1, 3, 6, 7))


def aten_pass(edit: Callable[[AtenGraph], None], name: str = "broken") -> Pass:
    def run(program: Program) -> int:
        """Break."""
        with AtenGraph(program) as graph:
            edit(graph)
        return 1

    run.__name__ = name
    return exact(run)


def found(program: Program, out: Path, *pipeline: Pass) -> Finding:
    result = bisect(program, pipeline, out=out).finding
    assert result is not None
    return result


def reproduced(finding: Finding) -> float:
    """What the printed lines print, run from the disk."""
    assert finding.folder is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(finding.folder / "reproduce.py"))
    assert (finding.folder / "reproduce.py").read_text() == finding.recipe
    return float(printed.getvalue())


def check(finding: Finding, name: str, node: str, nodes: int = 1) -> None:
    """Named, and the sub-graph is small and shows the difference again, alone."""
    assert (finding.pass_name, finding.node) == (name, node), finding
    assert len(finding.region) <= nodes
    assert finding.node_error is not None
    assert finding.node_error > finding.bound
    assert reproduced(finding) == pytest.approx(finding.node_error, rel=0.05, nan_ok=True)
    assert f"pass {name}" in finding.sentence()
    assert node in finding.sentence()
    assert finding.folder is not None
    assert {"inputs.npz", "expected.npz", "actual.npz", "inputs_before.npz"} <= {
        p.name for p in finding.folder.iterdir()
    }


# --- aten ------------------------------------------------------------------------------------------------------------


def test_a_good_pipeline(tmp_path: Path) -> None:
    told: list[str] = []
    result = bisect(
        program(),
        (*CLEAN, lower_to_onnx(20, 9), onnx_passes.fold_constants, onnx_passes.canonicalize_names),
        out=tmp_path,
        tolerance=1e-4,
        progress=told.append,
    )
    assert result.finding is None
    assert [(row.name, row.sites > 0) for row in result.rows] == [
        ("fold_batch_norm", True), ("eliminate_dead", False), ("lower_to_onnx", True), ("fold_constants", True),
        ("canonicalize_names", True),
    ]  # fmt: skip
    assert all(row.error <= row.bound for row in result.rows)
    assert told[0] == "part: fold_batch_norm"
    assert not list(tmp_path.iterdir())


def test_a_dropped_bias(tmp_path: Path) -> None:
    def drop(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.linear.default)
        node.args = node.args[:2]

    check(found(program(), tmp_path, *CLEAN, aten_pass(drop)), "broken", "linear")


def test_swapped_operands(tmp_path: Path) -> None:
    def swap(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.sub.Tensor)
        node.args = node.args[::-1]

    check(found(program(), tmp_path, *CLEAN, aten_pass(swap)), "broken", "sub")


def test_a_constant_one_per_cent_off(tmp_path: Path) -> None:
    def change(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.mul.Tensor)
        value = graph.constant(node.args[1])
        assert value is not None
        node.args = (node.args[0], graph.add_constant("gain", 1.01 * value))

    finding = found(program(), tmp_path, *CLEAN, aten_pass(change))
    check(finding, "broken", "mul")
    assert finding.node_error == pytest.approx(0.01, rel=0.01)
    assert finding.total == pytest.approx(finding.error, rel=0.01)


def test_a_wrong_fold_beside_a_right_one(tmp_path: Path) -> None:
    """Both convolutions compute something else now; only one of them is wrong, and it stands where its norm stood."""

    @exact
    def half_right(program: Program) -> int:
        aten_passes.fold_batch_norm(program)
        with AtenGraph(program) as graph:
            _, node = graph.calls(aten.conv2d.default)
            bias = graph.constant(node.args[2])
            assert bias is not None
            node.args = (*node.args[:2], graph.add_constant("bias", bias + 0.1), *node.args[3:])
        return 2

    finding = found(program(), tmp_path, half_right)
    check(finding, "half_right", "batch_norm_1")
    assert finding.now == "conv2d_1"
    assert "now conv2d_1" in finding.sentence()


def test_a_wrong_decomposition(tmp_path: Path) -> None:
    """New nodes: the region between the last right values and the reader of the old node."""

    def decompose(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.softmax.int)
        with graph.graph.inserting_before(node):
            power = graph.call(aten.exp.default, node.args[0])
            total = graph.call(aten.sum.dim_IntList, power, [1], True)  # the last axis would be right
            share = graph.call(aten.div.Tensor, power, total)
        graph.replace(node, share)

    finding = found(program(), tmp_path, *CLEAN, aten_pass(decompose))
    check(finding, "broken", "softmax", nodes=3)
    assert finding.region == ("exp_default", "sum_dim_int_list", "div_tensor")


def test_a_node_that_is_gone(tmp_path: Path) -> None:
    def drop(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.cos.default)
        graph.replace(node, node.args[0])  # type: ignore[arg-type]

    finding = found(program(), tmp_path, *CLEAN, aten_pass(drop))
    check(finding, "broken", "cos")
    assert finding.now == "sub"
    assert finding.message == "sub reads mul in its place"


def test_a_branch_baked_in_for_the_first_seed(tmp_path: Path) -> None:
    module = Calls(lambda _, x, y: torch.where(y.reshape(1, 1) > 0.5, x.sin(), x.cos()) + 1)
    branching = traced(module, (4, 30), (1,), roles={"y": "flag"})
    flags = [float(sample_inputs(branching.inputs, seed)["y"][0]) for seed in range(50)]
    seeds = [flags.index(1.0), flags.index(0.0)]

    def bake(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.where.self)
        graph.replace(node, node.args[1])  # type: ignore[arg-type]

    assert bisect(branching, (aten_pass(bake),), seeds=seeds[:1]).finding is None
    finding = bisect(branching, (aten_pass(bake),), seeds=seeds, out=tmp_path).finding
    assert finding is not None
    assert finding.seed == seeds[1]
    check(finding, "broken", "where")


def test_a_size_baked_in_with_dynamic_shapes(tmp_path: Path) -> None:
    net = Calls(lambda s, x: s.net(x).reshape(x.shape[0] * 4, 2) * x.mean(), net=nn.Linear(3, 8))
    dynamic = traced(randomise(net), ("batch", 3))
    size = sample_inputs(dynamic.inputs, SEEDS["fast"][0])["x"].shape[0]

    def bake(graph: AtenGraph) -> None:
        for node in graph.calls(aten.reshape.default, aten.view.default):
            node.args = (node.args[0], [size * 4, 2])

    finding = found(dynamic, tmp_path, aten_pass(bake))
    assert (finding.kind, finding.node, finding.error) == ("malformed", "reshape", None)
    assert finding.seed != SEEDS["fast"][0]
    assert finding.folder is not None
    assert "reshape" in (finding.folder / "after.txt").read_text()


def test_sizes_are_part_of_the_piece(tmp_path: Path) -> None:
    """Numbers that the graph works out from the shape of an input, of which the piece has none."""
    net = Calls(lambda s, x: s.net(x).sin().reshape(x.shape[0] * 4, 2) * 2, net=nn.Linear(3, 8))

    def shift(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.reshape.default, aten.view.default)
        with graph.graph.inserting_after(node):
            rolled = graph.call(aten.flip.default, node, [0])
        for reader in [user for user in node.users if user is not rolled]:
            reader.replace_input_with(node, rolled)

    finding = found(traced(randomise(net), ("batch", 3)), tmp_path, aten_pass(shift))
    check(finding, "broken", "reshape", nodes=1)


def test_the_third_of_a_list(tmp_path: Path) -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        q, k, v = s.net(x).chunk(3, -1)
        return q.sin() @ k.cos().transpose(0, 1) @ v.exp()

    def flip(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.chunk.default)
        items = {user.args[1]: user for user in node.users}
        items[1].args, items[2].args = (node, 2), (node, 1)

    finding = found(
        traced(randomise(Calls(function, net=nn.Linear(4, 12)), spread=0.1), (6, 4)), tmp_path, aten_pass(flip)
    )
    check(finding, "broken", finding.node or "", nodes=2)
    assert finding.node in ("getitem_1", "getitem_2", "cos", "exp")


def test_an_output_that_became_a_constant(tmp_path: Path) -> None:
    def freeze(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.softmax.int)
        graph.replace(node, graph.add_constant("frozen", torch.ones(1, 42, 5)))

    finding = found(program(), tmp_path, aten_pass(freeze))
    check(finding, "broken", "softmax", nodes=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_no_number(tmp_path: Path, bad: float) -> None:
    def poison(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.sin.default)
        with graph.graph.inserting_after(node):
            scaled = graph.call(aten.mul.Tensor, node, bad)
        for reader in [user for user in node.users if user is not scaled]:
            reader.replace_input_with(node, scaled)

    finding = found(program(), tmp_path, *CLEAN, aten_pass(poison))
    assert (finding.node, finding.now, finding.region) == ("sin", "mul_tensor", ("mul_tensor",))


def test_two_approximations_add_up() -> None:
    """Each keeps its own bound; the sum is found only where it is asked for."""

    def scaling(name: str) -> Pass:
        def scale(graph: AtenGraph) -> None:
            (node,) = graph.calls(aten.mul.Tensor)
            value = graph.constant(node.args[1])
            assert value is not None
            node.args = (node.args[0], graph.add_constant("gain", 1.004 * value))

        return approximate(1e-2, "each")(aten_pass(scale, name).run)

    net = Calls(lambda s, x: x.sin() * s.gain, gain=torch.randn(5))
    pipeline = (scaling("one"), scaling("two"), scaling("three"))
    quiet = bisect(traced(net, (20, 5)), pipeline)
    assert quiet.finding is None
    assert [round(row.error, 4) for row in quiet.rows] == [0.004, 0.004, 0.004]
    assert [round(row.total, 4) for row in quiet.rows] == [0.004, 0.008, 0.012]
    finding = bisect(traced(net, (20, 5)), pipeline, tolerance=1e-2).finding
    assert finding is not None
    assert (finding.pass_name, finding.kind, finding.node) == ("three", "accumulated", "mul")
    assert finding.error == pytest.approx(0.004, rel=0.01)
    assert finding.total == pytest.approx(0.012, rel=0.01)


def test_a_pass_that_raises(tmp_path: Path) -> None:
    def crash(graph: AtenGraph) -> None:
        for node in graph.calls(aten.sub.Tensor):
            raise KeyError(node.name)

    finding = found(program(), tmp_path, *CLEAN, aten_pass(crash))
    assert (finding.kind, finding.pass_name, finding.node, finding.region) == ("raised", "broken", "sub", ("sub",))
    assert finding.message == "KeyError: 'sub'"
    assert finding.folder is not None
    piece = Program("part", (), (), torch.export.load(finding.folder / "before.pt2"))
    with pytest.raises(KeyError):
        aten_pass(crash)(piece)


def test_a_pass_that_raises_on_a_pair(tmp_path: Path) -> None:
    def crash(graph: AtenGraph) -> None:
        for node in graph.calls(aten.batch_norm.default):
            if graph.constant(node.args[0].args[1]) is not None and node.name == "batch_norm_1":  # type: ignore[union-attr]
                raise ValueError("no such convolution")

    finding = found(program(), tmp_path, aten_pass(crash))
    assert finding.node == "batch_norm_1"
    assert "no such convolution" in finding.sentence()


def test_what_a_pass_raises_on_is_cut_out_with_as_much_around_it_as_that_takes(tmp_path: Path) -> None:
    def crash(graph: AtenGraph) -> None:
        for node in graph.calls(aten.sub.Tensor):
            if [n.target for n in node.all_input_nodes] == [aten.sin.default, aten.cos.default]:
                raise ValueError("this pair")

    finding = found(program(), tmp_path, aten_pass(crash))
    assert (finding.node, sorted(finding.region)) == ("sub", ["cos", "sin", "sub"])
    assert finding.message == "ValueError: this pair"
    assert finding.folder is not None
    piece = Program("part", (), (), torch.export.load(finding.folder / "before.pt2"))
    with pytest.raises(ValueError, match="this pair"):
        aten_pass(crash)(piece)


def broken_at_the_difference(kind: str) -> Pass:
    def edit(graph: AtenGraph) -> None:
        for node in graph.calls(aten.sub.Tensor):
            if kind == "raised":
                raise ValueError("no")
            if kind == "malformed":
                node.args = (node.args[0], "text")
            else:
                graph.replace(node, node.args[0])  # type: ignore[arg-type]

    return aten_pass(edit)


@pytest.mark.parametrize("kind", ["left its bound", "raised", "malformed"])
def test_what_the_sub_graph_reads_is_beside_it(tmp_path: Path, kind: str) -> None:
    """In a folder that need not exist, and may."""
    for _ in range(2):
        finding = found(program(), tmp_path / "one" / "two", broken_at_the_difference(kind))
        assert (finding.kind, finding.node, finding.message.count("could not")) == (kind, "sub", 0)
        assert finding.folder == tmp_path / "one" / "two" / "part.broken"
    assert finding.folder is not None
    view = view_of(program())
    saved = np.load(finding.folder / ("inputs_before.npz" if kind == "left its bound" else "inputs.npz"))
    assert "sin" in saved.files
    assert kind != "raised" or set(saved.files) == {"sin", "cos"}
    expected = view.values(sample_inputs(program().inputs, SEEDS["fast"][0]), saved.files)
    for key in saved.files:
        np.testing.assert_allclose(saved[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["left its bound", "raised", "malformed"])
def test_a_finding_whose_files_cannot_be_written_is_still_one(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / "a file"
    taken.touch()
    finding = found(program(), taken, broken_at_the_difference(kind))
    assert (finding.kind, finding.node) == (kind, "sub")
    assert "its sub-graph could not be written (NotADirectoryError" in finding.message
    assert finding.folder is None


def test_a_pass_that_raises_whatever_it_gets() -> None:
    def crash(graph: AtenGraph) -> None:
        raise RuntimeError("always")

    finding = bisect(program(), (aten_pass(crash),)).finding
    assert finding is not None
    assert (finding.kind, finding.message) == ("raised", "RuntimeError: always")


def test_a_missing_toolkit_is_no_finding() -> None:
    @exact
    def needs(program: Program) -> int:
        raise MissingToolkit("needs X")

    with pytest.raises(MissingToolkit):
        bisect(program(), (needs,))


@pytest.mark.parametrize("lowered", [False, True], ids=["aten", "onnx"])
def test_the_beginning_of_a_program_is_one_itself(lowered: bool) -> None:
    """A pass that raises gets it to chew on: its outputs are what the nodes compute in the whole program."""
    before = program()
    if lowered:
        lower_to_onnx(20, 9)(before)
    view, inputs = view_of(before), sample_inputs(before.inputs, 1)
    wanted = {"aten.sin.default", "aten.cos.default", "::Sin:0", "::Cos:0"}
    names = [name for name in view.nodes if view.operator(name) in wanted]
    assert len(names) == 2
    first = view.ending_in(names)
    expected = view.values(inputs, names)
    found = run_program(first, inputs)
    assert list(found) == names
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    if not lowered:
        assert first.aten.graph_signature.user_outputs == tuple(names)


@pytest.mark.parametrize("lowered", [False, True], ids=["aten", "onnx"])
def test_a_piece_is_a_program_of_its_own(lowered: bool) -> None:
    """With inputs called and shaped as what it reads."""
    before = program()
    if lowered:
        lower_to_onnx(20, 9)(before)
    view, inputs = view_of(before), sample_inputs(before.inputs, 1)
    (end,) = (name for name in view.nodes if view.operator(name) in ("aten.sub.Tensor", "::Sub:0"))
    region = view.near(end, 2)
    piece, feeds = view.piece(region, inputs), view.values(inputs, region.inputs)
    assert {spec.name: spec.shape for spec in piece.inputs} == {name: value.shape for name, value in feeds.items()}
    (found,) = run_program(piece, feeds).values()
    np.testing.assert_allclose(found, view.values(inputs, [end])[end], rtol=1e-5, atol=1e-6)


def test_the_program_given_stays_as_it_was(tmp_path: Path) -> None:
    given = program()
    text = str(given.aten.graph)
    found(given, tmp_path, aten_pass(lambda graph: next(graph.calls(aten.sin.default)).replace_all_uses_with(
        next(graph.calls(aten.gelu.default)))))  # fmt: skip
    assert str(given.aten.graph) == text


def halved(program: Program, by: float) -> int:
    """Let the host divide the input by two; the graph multiplies it."""
    with AtenGraph(program) as graph:
        node = next(graph.calls(aten.linear.default))
        (x,) = (n for n in graph.graph.nodes if n.name == "x")
        with graph.graph.inserting_before(node):
            doubled = graph.call(aten.mul.Tensor, x, by)
        node.replace_input_with(x, doubled)
    return 1


@pytest.mark.parametrize("by", [2.0, 2.1], ids=["right", "wrong"])
def test_a_pass_that_changes_what_the_inputs_are(tmp_path: Path, by: float) -> None:
    rewrite = adapting(lambda before, after, inputs: {"x": inputs["x"] / 2})(exact(lambda p: halved(p, by)))
    given = traced(randomise(Calls(lambda s, x: s.net(x).sin() + 1, net=nn.Linear(4, 12)), spread=0.1), (6, 4))
    flips = aten_pass(lambda graph: [graph.replace(n, n.args[0]) for n in graph.calls(aten.add.Tensor)], "later")  # type: ignore[func-returns-value, misc, arg-type]
    finding = found(given, tmp_path, rewrite, flips)
    if by == 2:
        assert (finding.pass_name, finding.node) == ("later", "add")
    else:
        check(finding, "<lambda>", "linear", nodes=2)


# --- lowering --------------------------------------------------------------------------------------------------------


def test_a_wrong_lowering(tmp_path: Path) -> None:
    """Across the dialects: the exporter keeps the names of most values."""
    right = lower_to_onnx(20, 9)

    @exact
    def lower_to_onnx_wrongly(program: Program) -> int:
        sites = right(program)
        (node,) = (n for n in program.onnx.graph if n.op_type == "Sub")
        first, second = node.inputs
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
        return sites

    finding = found(program(), tmp_path, *CLEAN, lower_to_onnx_wrongly)
    check(finding, "lower_to_onnx_wrongly", "sub")
    assert finding.folder is not None
    assert (finding.folder / "before.pt2").is_file()
    assert (finding.folder / "after.onnx").is_file()


# --- onnx ------------------------------------------------------------------------------------------------------------


def onnx_program() -> Program:
    return parsed("""
        part (float[1,4,6] x) => (float[1,4,6] y, float[1,4] z)
        <float[6] w = {1, -2, 3, -4, 5, -6}, float[6] v = {0.5, 1, 1.5, 2, 2.5, 3}> {
            a = Mul(x, w)
            b = Add(a, v)
            c = Tanh(b)
            d = Softmax<axis = -1>(c)
            y = Add(d, x)
            axes = Constant<value_ints = [2]>()
            z = ReduceMean<keepdims = 0>(c, axes)
        }""")


def test_a_good_onnx_pipeline() -> None:
    passes = [getattr(onnx_passes, name) for name in onnx_passes.__all__]
    assert bisect(onnx_program(), [p for p in passes if isinstance(p, Pass)]).finding is None


def test_a_dropped_add(tmp_path: Path) -> None:
    @exact
    def drop_add(program: Program) -> int:
        node = next(n for n in program.onnx.graph if n.op_type == "Add")
        assert node.inputs[0] is not None
        replace_value(node.outputs[0], node.inputs[0])
        program.onnx.graph.remove(node)
        return 1

    finding = found(onnx_program(), tmp_path, onnx_passes.fold_constants, drop_add)
    check(finding, "drop_add", "b")
    assert (finding.now, finding.message) == ("c", "c reads a in its place")


def test_another_axis(tmp_path: Path) -> None:
    import onnx_ir as ir

    @exact
    def change_axis(program: Program) -> int:
        """Give every value another name as well."""
        for index, node in enumerate(program.onnx.graph):
            if not node.outputs[0].is_graph_output():
                node.outputs[0].name = f"value_{index}"
        node = next(n for n in program.onnx.graph if n.op_type == "Softmax")
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
        return 1

    finding = found(onnx_program(), tmp_path, change_axis)
    check(finding, "change_axis", "d")
    assert finding.now == "value_3"


def test_the_last_node(tmp_path: Path) -> None:
    @exact
    def drop_last(program: Program) -> int:
        node = next(n for n in program.onnx.graph if n.outputs[0].name == "y")
        assert node.inputs[0] is not None
        replace_value(node.outputs[0], node.inputs[0])
        program.onnx.graph.remove(node)
        return 1

    check(found(onnx_program(), tmp_path, drop_last), "drop_last", "y")


def test_an_operator_that_does_not_exist(tmp_path: Path) -> None:
    @exact
    def misspell(program: Program) -> int:
        next(n for n in program.onnx.graph if n.op_type == "Tanh").op_type = "Tanhh"
        return 1

    finding = found(onnx_program(), tmp_path, misspell)
    assert (finding.kind, finding.node, finding.pass_name) == ("malformed", "c", "misspell")
    assert "Tanhh" in finding.message
    assert finding.folder is not None
    assert (finding.folder / "after.onnx").is_file()


def test_an_onnx_pass_that_raises(tmp_path: Path) -> None:
    @exact
    def crash(program: Program) -> int:
        for node in program.onnx.graph:
            if node.op_type == "Softmax":
                raise IndexError("axis")
        return 0

    finding = found(onnx_program(), tmp_path, crash)
    assert (finding.kind, finding.node, finding.region) == ("raised", "d", ("d",))


def test_inside_a_branch(tmp_path: Path) -> None:
    """The branches of an If read values of the graph around them."""
    branching = parsed("""
        part (float[4,5] x, bool flag) => (float[4,5] y) {
            a = Sin(x)
            b = Cos(x)
            c = If(flag) <then_branch = t () => (float[4,5] p) { p = Add(a, b) },
                          else_branch = e () => (float[4,5] q) { q = Sub(a, b) }>
            y = Exp(c)
        }""")

    @exact
    def swap_inside(program: Program) -> int:
        (node,) = (n for n in program.onnx.graph if n.op_type == "If")
        for name in ("then_branch", "else_branch"):
            (inner,) = node.attributes[name].as_graph()
            inner.op_type = "Mul"
        return 1

    check(found(branching, tmp_path, swap_inside), "swap_inside", "c")


# --- sketches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 4096, 4097, 100_000])
def test_the_distance_of_sketches_is_that_of_values(size: int) -> None:
    rng = np.random.default_rng(size)
    a = rng.standard_normal(size).astype(np.float32)
    for scale in (1e-6, 1e-2, 1.0):
        b = a + np.float32(scale) * rng.standard_normal(size).astype(np.float32)
        expected = np.linalg.norm(b.astype(float) - a) / np.linalg.norm(a)
        assert Sketch.of(a).distance(Sketch.of(b)) == pytest.approx(expected, rel=0.1)
    c = a.copy()
    c[size // 2] += 100
    assert Sketch.of(a).distance(Sketch.of(c)) == pytest.approx(100 / np.linalg.norm(a), rel=1e-3)
    assert Sketch.of(a).distance(Sketch.of(a)) == 0


def test_nothing_is_near_nan() -> None:
    ones = np.ones(4, np.float32)
    assert not Sketch.of(ones).distance(Sketch.of(ones * np.nan)) <= 1
    assert not Sketch.of(ones * np.inf).distance(Sketch.of(ones)) <= 1
    assert Sketch.of(np.zeros(0)).distance(Sketch.of(np.zeros(0))) == 0
