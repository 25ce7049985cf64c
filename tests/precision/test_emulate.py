"""Emulated fp16: every tensor rounded, arithmetic in fp32, islands left alone; and who is to blame for the error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgesam_deploy.errors import ParityError
from edgesam_deploy.precision.emulate import Emulation, rounded
from edgesam_deploy.precision.islands import find_islands, shares, spread
from edgesam_deploy.precision.watch import Watch

from passes.programs import Calls, randomise, traced  # isort: skip


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def names(program):
    return {str(n.target).split(".")[1]: n.name for n in program.aten.graph.nodes if n.op == "call_function"}


def test_rounding_is_numpys():
    x = torch.cat([randn(1000) * 10.0**k for k in range(-9, 6)])
    with np.errstate(over="ignore"):
        expected = x.numpy().astype(np.float16).astype(np.float32)
    assert np.array_equal(rounded(x).numpy(), expected)


def test_every_tensor_is_rounded_and_sums_are_wide():
    layer = randomise(nn.Linear(64, 8))
    program, x = traced(layer, (2, 64)), randn(2, 64)
    (out,) = Emulation(program).run({"x": x})
    w, b = rounded(layer.weight.detach()), rounded(layer.bias.detach())
    assert torch.equal(out, rounded(torch.nn.functional.linear(rounded(x), w, b)))


def test_a_sum_past_the_end_is_infinite_and_integers_are_left_alone():
    program = traced(Calls(lambda s, x: (x + x, x.argmax(-1))), (1, 4), outputs=2)
    total, index = Emulation(program).run({"x": torch.tensor([[1.0, 40_000, 3, 4]])})
    assert total.tolist() == [[2, float("inf"), 6, 8]]
    assert index.tolist() == [1]


def spelled_norm(_, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()


def test_an_overflow_may_be_absorbed_and_is_seen():
    program, x = traced(Calls(spelled_norm), (4, 32)), 800 * randn(4, 32)
    watch = Watch(program)
    watch.where = "here"
    (out,) = watch.run({"x": x})
    assert torch.isfinite(out).all()  # no NaN, and still wrong
    assert (out == 0).all()
    (found,) = watch.overflows()
    assert found.node.name == names(program)["pow"]
    assert found.role == "variance"
    assert found.overflow == pytest.approx(float((x - x.mean(-1, keepdim=True)).square().max()), rel=1e-5)
    assert found.where == "here"


def test_an_island_reads_and_writes_fp32():
    program, x = traced(Calls(spelled_norm), (4, 32)), 800 * randn(4, 32)
    at = names(program)
    island = [at["pow"], [n.name for n in program.aten.graph.nodes if n.name.startswith("mean")][-1], at["add"]]
    emulation = Emulation(program, [*island, at["rsqrt"]])
    (out,) = emulation.run({"x": x})
    assert float((out - spelled_norm(None, x)).norm() / out.norm()) < 1e-3
    whole = emulation.with_islands([n.name for n in program.aten.graph.nodes])
    assert torch.equal(whole.run({"x": x})[0], spelled_norm(None, x))  # x too: inputs are fp32 to an island
    (half,) = emulation.with_islands([]).run({"x": x})
    assert (half == 0).all()


def test_the_fp32_program_beside_it_is_the_fp32_program():
    program, x = traced(randomise(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))), (2, 8)), randn(2, 8)
    wide = {}
    Emulation(program).run_beside({"x": x}, lambda node, w, h: wide.update({node.name: w}))
    (last,) = program.aten.graph.output_node().args[0]
    assert torch.equal(wide[last.name], program.aten.module()(x=x))


# --- blame -----------------------------------------------------------------------------------------------------------


def deep(seed=0):
    layers = [m for i in range(6) for m in (nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU())]
    return traced(randomise(nn.Sequential(*layers), seed), (8, 32)), {"x": randn(8, 32, seed=seed + 1)}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shares_add_up_to_the_error(seed):
    program, inputs = deep(seed)
    found = shares(program, inputs)
    assert sum(found.values()) == pytest.approx(1, abs=0.02)
    assert any(name.startswith("p_net") for name in found)  # weights have theirs
    assert "x" in found


def test_the_share_of_a_planted_loss_is_the_largest():
    program = traced(Calls(lambda s, x: torch.tanh((x + 3000) - 3000) * 2), (4, 32))
    found = shares(program, {"x": randn(4, 32)})
    assert max(found, key=lambda n: found[n]) == names(program)["add"]
    assert found[names(program)["add"]] > 0.9


def test_where_fp16_overflows_there_are_no_shares():
    assert shares(traced(Calls(lambda s, x: x * 1e6), (4, 32)), {"x": randn(4, 32)}) == {}


def test_a_large_constant_hides_no_loss():
    x = randn(4, 32)
    assert float(spread(x + 1e4)) == pytest.approx(float(spread(x)), rel=1e-2)
    assert float(spread(x[0, :4])) == float(x[0, :4].norm())


# --- islands ---------------------------------------------------------------------------------------------------------


def test_the_few_nodes_that_overflow_are_found():
    program, x = traced(Calls(spelled_norm), (4, 32)), 800 * randn(4, 32)
    found = find_islands(program, [{"x": x}], 1e-3)
    assert found.before > 0.5
    assert found.after <= 1e-3
    at = names(program)
    assert at["pow"] in found.nodes
    assert set(found.nodes) <= {n.name for n in program.aten.graph.nodes}
    assert len(found.nodes) < 5
    watch = Watch(program, found.nodes)
    watch.run({"x": x})
    assert not watch.overflows()


def test_the_few_nodes_that_lose_digits_are_found():
    def lossy(s, x):
        y = torch.tanh(s.net(x))
        return torch.tanh((y + 3000) - 3000) * 2

    program, x = traced(Calls(lossy, net=randomise(nn.Linear(32, 32))), (4, 32)), randn(4, 32)
    found = find_islands(program, [{"x": x}], 2e-3)
    assert found.before > 0.1
    assert found.after <= 2e-3
    assert set(found.nodes) == {names(program)["add"], names(program)["sub"]}


def test_none_are_kept_where_none_are_needed():
    program, inputs = deep()
    found = find_islands(program, [inputs], 0.5)
    assert found.nodes == ()
    assert found.after == found.before


def test_fewer_for_a_looser_bound():
    program, inputs = deep()
    before = find_islands(program, [inputs], 0.5).before
    sizes = [len(find_islands(program, [inputs], before * share).nodes) for share in (0.9, 0.5, 0.1)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert find_islands(program, [inputs], before * 0.5) == find_islands(program, [inputs], before * 0.5)


def test_a_bound_out_of_reach_is_refused():
    program, inputs = deep()
    every = [n.name for n in program.aten.graph.nodes]
    assert find_islands(program, [inputs], 1e-9).nodes  # all in fp32 is fp32
    with pytest.raises(ParityError, match="even with every node"):
        find_islands(program, [inputs], -1.0, every)
