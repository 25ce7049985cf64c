"""The editing view: constants in and out, names unique, signature and state_dict in step."""

from __future__ import annotations

import pytest
import torch
from passes.programs import Calls, counts, randomise, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape, shape
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


def linear() -> Program:
    return traced(randomise(Calls(lambda s, x: s.net(x).relu(), net=nn.Linear(3, 2))), (2, 3))


X = torch.arange(6.0).reshape(2, 3)


def run(program: Program) -> Tensor:
    return torch.from_numpy(run_program(program, {"x": X.numpy()})["out0"])


def before_relu() -> Tensor:
    weights = linear().aten.state_dict
    return (X @ weights["net.weight"].T + weights["net.bias"]).detach()


def test_constants_are_found() -> None:
    program = linear()
    graph = AtenGraph(program)
    (node,) = graph.calls(aten.linear.default)
    source, weight, bias = node.args
    assert graph.constant(weight) is program.aten.state_dict["net.weight"]
    assert (graph.target(weight), graph.target(bias)) == ("net.weight", "net.bias")  # type: ignore[arg-type]
    assert graph.constant(source) is None
    assert graph.constant(node) is None
    assert graph.constant(None) is None
    assert graph.constant(2.0) is None


def test_kinds_of_constants() -> None:
    """Parameter, buffer, buffer that is not saved, and a tensor that the tracer lifted."""
    module = Calls(
        lambda s, x: s.net(x) * s.table + s.hidden + torch.tensor(3.0), net=nn.Linear(3, 3), table=torch.ones(3)
    )
    module.register_buffer("hidden", torch.full((3,), 2.0), persistent=False)
    graph = AtenGraph(traced(module, (2, 3)))
    values = [graph.constant(n) for n in graph.graph.nodes if n.op == "placeholder" and n.name != "x"]
    assert len(values) == 5
    assert all(isinstance(v, Tensor) for v in values)


def test_add_call_and_replace() -> None:
    program = linear()
    with AtenGraph(program) as graph:
        (node,) = graph.calls(aten.relu.default)
        with graph.graph.inserting_before(node):
            shift = graph.add_constant("shift", torch.tensor([5.0, -5.0]))
            total = graph.call(aten.add.Tensor, node.args[0], shift)
        assert shape(total) == (2, 2)
        graph.replace(node, total)
    assert counts(program) == {"linear": 1, "add": 1}
    assert program.aten.graph_signature.user_outputs == ("add_tensor",)
    assert set(program.aten.state_dict) == {"net.weight", "net.bias", "shift"}
    torch.testing.assert_close(run(program), before_relu() + torch.tensor([5.0, -5.0]))
    program.copy()  # builds a new ExportedProgram, which checks the signature


def test_names_of_constants_are_made_unique() -> None:
    program = linear()
    with AtenGraph(program) as graph:
        (node,) = graph.calls(aten.relu.default)
        for value in (1.0, 2.0, 3.0):
            with graph.graph.inserting_after(node.args[0]):  # type: ignore[arg-type]
                constant = graph.add_constant("net.weight", torch.tensor(value))
            with graph.graph.inserting_before(node):
                node.args = (graph.call(aten.add.Tensor, node.args[0], constant),)
    assert set(program.aten.state_dict) == {"net.weight", "net.bias", "net.weight_1", "net.weight_2", "net.weight_3"}
    torch.testing.assert_close(run(program), (before_relu() + 6).relu())
    program.copy()


def test_leaving_removes_what_became_dead() -> None:
    program = linear()
    with AtenGraph(program) as graph:
        (node,) = graph.calls(aten.relu.default)
        x = next(n for n in graph.graph.nodes if n.name == "x")
        with graph.graph.inserting_before(node):
            graph.replace(node, graph.call(aten.sum.default, x))
    assert counts(program) == {"sum": 1}
    assert not program.aten.state_dict
    assert [s.arg.name for s in program.aten.graph_signature.input_specs] == ["x"]


def test_an_exception_is_not_hidden_by_cleaning() -> None:
    program = linear()

    def broken() -> None:
        with AtenGraph(program) as graph:
            (node,) = graph.calls(aten.relu.default)
            node.args = (None,)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        broken()


def test_calls_is_safe_while_the_graph_is_edited() -> None:
    program = traced(Calls(lambda _, x: x.relu().relu().relu().relu()), (2, 3))
    seen = []
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.relu.default):
            seen.append(node.name)
            for reader in list(node.users):
                if reader.target == aten.relu.default:
                    graph.replace(reader, node)  # erases one that was still to come
    assert seen == ["relu", "relu_2"]
    assert counts(program) == {"relu": 2}


def test_helpers() -> None:
    program = traced(
        Calls(lambda _, x: (x + x.mean(1, keepdim=True)).softmax(dim=1) * x.reshape(x.shape)), ("batch", 3)
    )
    nodes = {n.name: n for n in program.aten.graph.nodes}
    assert argument(nodes["mean"], 1, "dim") == [1]
    assert argument(nodes["mean"], 2, "keepdim", False) is True
    assert argument(nodes["add"], 2, "alpha", 1) == 1
    assert argument(nodes["softmax"], 9, "missing") is None
    assert only_reader(nodes["add"])
    assert not only_reader(nodes["x"])
    assert same_shape(nodes["x"], nodes["softmax"])
    assert not same_shape(nodes["x"], nodes["mean"])


def test_a_constant_that_two_inputs_name_stays_while_one_is_read() -> None:
    program = linear()
    with AtenGraph(program) as graph:
        second = graph.add_constant("second", torch.zeros(2, 3))
        graph._specs[second.name].target = "net.weight"
    assert [s.target for s in program.aten.graph_signature.input_specs] == ["net.weight", "net.bias", None]
    torch.testing.assert_close(run(program), before_relu().relu())


def test_buffers_that_are_not_saved_go_when_nobody_reads_them() -> None:
    module = Calls(lambda s, x: x.relu() + s.hidden)
    module.register_buffer("hidden", torch.full((3,), 2.0), persistent=False)
    program = traced(module, (2, 3))
    assert "hidden" in program.aten.constants
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.add.Tensor):
            graph.replace(node, node.args[0])  # type: ignore[arg-type]
    assert not program.aten.constants
    program.copy()


def test_added_constants_are_saved() -> None:
    program = linear()
    with AtenGraph(program) as graph:
        (node,) = graph.calls(aten.relu.default)
        with graph.graph.inserting_before(node):
            graph.replace(node, graph.call(aten.add.Tensor, node.args[0], graph.add_constant("s", torch.ones(2))))
    signature = program.aten.graph_signature
    assert "s" in signature.buffers
    assert "s" not in signature.non_persistent_buffers


def test_a_value_that_is_read_before_it_is_computed_is_found_on_leaving() -> None:
    program = traced(Calls(lambda _, x: x.relu().exp().sin()), (2, 3))
    with pytest.raises(RuntimeError, match="before it has been defined"), AtenGraph(program) as graph:
        first, _, last = graph.calls(aten.relu.default, aten.exp.default, aten.sin.default)
        first.args = (last,)


def test_the_code_is_that_of_the_edited_graph() -> None:
    program = linear()
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.relu.default):
            node.target = aten.sigmoid.default
    torch.testing.assert_close(run(program), before_relu().sigmoid())


def test_sizes_of_constants_are_numbers_in_a_program_of_dynamic_ones() -> None:
    graph = AtenGraph(traced(Calls(lambda _, x: x.relu()), ("batch", 3)))
    assert [type(size) for size in shape(graph.add_constant("table", torch.ones(5, 3)))] == [int, int]
