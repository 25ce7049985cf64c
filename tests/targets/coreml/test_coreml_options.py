"""What can be asked of the coreml target, what is refused before anything is converted, and what is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY

from edgesam_deploy.contract import Interface
from edgesam_deploy.errors import BundleError, MissingToolkit, UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.coreml.compress import nearest_table
from edgesam_deploy.targets.coreml.convert import feeds
from edgesam_deploy.targets.coreml.runner import DeviceRunner, open_part

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"batch": "dynamic"}, "give a number"),
    ({"io": "edgesam-npu", "points": "dynamic"}, "static shapes"),
    ({"layout": "nhwc"}, "nchw or ane"),
    ({"layout": "ane"}, "add --io edgesam-npu"),
    ({"layout": "ane", "io": "edgesam-npu", "points": "dynamic"}, "static shapes"),
    ({"points": "range"}, "'dynamic'"),
    ({"io": "sam"}, "Core ML's inputs"),
    ({"io": "edgesam-dyt"}, "Core ML's inputs"),
    ({"precision": "int4"}, "fp16, fp32, int8, palette8, palette6"),
    ({"deployment_target": "iOS15"}, "iOS16, iOS17, iOS18"),
    ({"io": "edgesam", "batch": 2}, "one prompt per call"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=str)
def test_options_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_target("coreml", **options)
    assert caught.value.exit_code == 2


def test_defaults() -> None:
    target = make_target("coreml")
    assert (target.options()["precision"], target.options()["deployment_target"]) == ("fp16", "iOS17")
    interface = make_target("coreml", io="edgesam").interface(load("edge_sam", config=FAMILY["edge_sam"]).config)
    assert isinstance(interface, Interface)
    assert interface.points == 5


def test_without_the_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingToolkit, match=r"pip install 'edgesam-deploy\[coreml\]'") as caught:
        make_target("coreml").require_toolkits()
    assert caught.value.exit_code == 3


def test_the_unit_is_not_ours_to_choose(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--provider cuda"):
        make_target("coreml").load(tmp_path, part="image_encoder", provider="cuda", threads=1)


def test_on_a_mac_core_ml_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for coremltools, whose predict runs on macOS only."""

    class Loaded:
        def __init__(self, path: str, function_name: str | None) -> None:
            assert function_name is None  # the package has one alone
            if not Path(path).exists():
                raise RuntimeError("no such package")

        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"y": inputs["x"] + 1}

    stand_in = type(sys)("coremltools")
    stand_in.models = type(sys)("models")  # type: ignore[attr-defined]
    stand_in.models.MLModel, stand_in.__version__ = Loaded, "9.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coremltools", stand_in)
    monkeypatch.setattr(sys, "platform", "darwin")
    about = type(sys)("description")
    about.functions, about.input = [], []  # type: ignore[attr-defined]
    model = type(sys)("model")
    model.description = about  # type: ignore[attr-defined]
    monkeypatch.setattr("edgesam_deploy.targets.coreml.runner.read_model", lambda path: model)
    runner = open_part(tmp_path, "image_encoder")
    assert isinstance(runner, DeviceRunner)
    assert runner.description.startswith("device: Core ML")
    assert runner({"x": np.array([1.0])})["y"].tolist() == [2.0]
    with pytest.raises(BundleError, match="no such package"):
        open_part(tmp_path / "missing", "image_encoder")


def test_what_leads_to_a_sine() -> None:
    class Value:
        def __init__(self, *readers: Any) -> None:
            self.child_ops = readers

    class Op:
        def __init__(self, kind: str, *readers: Any) -> None:
            self.op_type, self.outputs = kind, [Value(*readers)]

    sine = Op("sin", Op("concat"))
    before = Op("mul", Op("cast"), sine)
    assert feeds(before, ("sin",))
    assert not feeds(sine.outputs[0].child_ops[0], ("sin",))
    assert not feeds(Op("mul", Op("softmax")), ("sin", "cos"))


# --- tables of few values ---


def test_few_values_are_kept_as_they_are() -> None:
    weight = np.array([[0.5, -1.0, 0.5], [2.0, -1.0, 0.25]], np.float32)
    table, index = nearest_table(weight, 6)
    assert (table.shape, table.dtype, index.shape, index.dtype) == ((64,), np.float32, (2, 3), np.uint8)
    assert np.allclose(table[index], weight, atol=1e-6)


def test_the_table_is_better_than_even_steps(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((64, 3, 3, 8)).astype(np.float16)
    table, index = nearest_table(weight, 4)
    even = np.linspace(weight.min(), weight.max(), 16, dtype=np.float32)
    steps = even[np.abs(weight[..., None] - even).argmin(-1)]
    assert index.max() == 15
    assert (np.diff(table) > 0).all()
    assert np.square(table[index] - weight).sum() < 0.7 * np.square(steps - weight).sum()
