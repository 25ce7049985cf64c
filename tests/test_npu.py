"""The npu target, profile tv: what its compiler refuses is gone, and the result is the contract decoder's."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import FAMILY
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import verify
from edgesam_deploy.contract import Interface, encode_positions
from edgesam_deploy.errors import BundleError, UsageError
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.model.registry import load
from edgesam_deploy.runtime import open_predictor
from edgesam_deploy.targets import make_target

REFUSED = {"Sin", "Cos", "Abs", "Gather", "GatherND", "ScatterND", "NonZero", "Greater", "OneHot", "Tile"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    done = {}

    def get(name="edge_sam", **options):
        key = name, repr(sorted(options.items()))
        if key not in done:
            model = load(name, config=FAMILY[name])
            folder = tmp_path_factory.mktemp("npu") / "bundle"
            pictures = {"scene": picture(150, 225, 10)}
            done[key] = model, build(model, "npu", folder, proof="fast", pictures=pictures, **options)
        return done[key]

    return get


CASES = [
    ("edge_sam", {}),
    ("edge_sam", {"scores": "stability"}),
    pytest.param("edge_sam_dyt_hq", {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_nothing_that_the_compiler_refuses(built, name, options):
    _, bundle = built(name, **options)
    for part in bundle.manifest["parts"]:
        model = onnx.load(bundle.part(part))
        assert [entry.version for entry in model.opset_import] == [11]
        assert not {node.op_type for node in model.graph.node} & REFUSED
        assert not {i.name for i in model.graph.input} & {i.name for i in model.graph.initializer}
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim)
        assert not [n for n in model.graph.node if n.op_type == "Cast"]
    rows = [r for part in bundle.read_json("ops.json")["parts"].values() for r in part["rows"]]
    assert not [row for row in rows if row["status"] == "unsupported"]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_int64_only_where_the_specification_wants_it(built, name, options):
    _, bundle = built(name, **options)
    for part in bundle.manifest["parts"]:
        model = onnx.shape_inference.infer_shapes(onnx.load(bundle.part(part)))
        computed = {name for node in model.graph.node for name in node.output}
        kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info if v.name in computed}
        assert onnx.TensorProto.INT64 not in kinds.values()
        wide = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64}
        for node in model.graph.node:
            schema = onnx.defs.get_schema(node.op_type, 11)
            for index, value in enumerate(node.input):
                if value in wide:
                    kind = schema.inputs[min(index, len(schema.inputs) - 1)]
                    assert "tensor(int32)" not in kind.types or node.op_type == "Slice", (node.op_type, index)


def test_it_is_what_its_apps_feed(built):
    """Encoded positions and labels in, scores and masks out, N slots; positions as the sidecar's matrix gives them."""
    model, bundle = built()
    session = onnxruntime.InferenceSession(str(bundle.part("mask_decoder")))
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("image_embeddings", [1, 64, 16, 16]), ("point_embedding_pe", [1, 5, 64]), ("point_labels", [1, 5]),
    ]  # fmt: skip
    assert [o.name for o in session.get_outputs()] == ["scores", "masks"]
    matrix = np.fromfile(bundle.path / "pe_gaussian_matrix.bin", "<f4").reshape(2, 32)
    own = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.numpy()
    np.testing.assert_array_equal(matrix, own)
    predictor = SamPredictor(model)
    embeddings = predictor.set_image(picture(150, 225, 10)).numpy()
    coords = np.array([[[60, 40], [0, 0], [200, 30], [5, 5], [1, 2]]], np.float32)
    labels = np.array([[1, -1, 0, -1, -10]], np.float32)  # an app without empty slots sends -1, a token of its own
    feeds = {
        "image_embeddings": embeddings,
        "point_embedding_pe": encode_positions(coords, matrix, model.image_size),
        "point_labels": labels,
    }
    scores, masks = session.run(None, feeds)
    expected, iou = predictor.predict_slots(coords, labels)
    assert np.abs(masks - expected).max() < 1e-4
    assert np.abs(scores - iou).max() < 1e-4


def test_soft_stability_is_close_to_the_counted_one(built):
    _, bundle = built(scores="stability")
    parity = bundle.read_json("parity.json")
    assert parity["verdict"] == "pass"
    assert parity["summary"]["outputs"]["scores"]["max_abs"] < 1e-4  # as asked: pixels counted by sigmoids
    price = parity["faithful"]["summary"]["outputs"]["scores"]["max_abs"]
    assert 1e-5 < price < 0.01  # of 64 x 64 pixels; 4e-4 at the real size
    assert "counted one by one" in parity["faithful"]["reference"]


def test_a_bundle_without_its_matrix(built, tmp_path):
    import shutil

    _, bundle = built()
    shutil.copytree(bundle.path, tmp_path / "copy")
    assert "pe_gaussian_matrix.bin" in verify(tmp_path / "copy").manifest["files"]
    (tmp_path / "copy" / "pe_gaussian_matrix.bin").unlink()
    with pytest.raises(BundleError, match="pe_gaussian_matrix"):
        open_predictor(tmp_path / "copy")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"points": "dynamic"}, "static shapes"), ({"opset": 10}, "11 to 23"), ({"profile": "x"}, "profile"),
     ({"mask_input": True}, "no mask input"), ({"batch": 2}, "one prompt per call")],
)  # fmt: skip
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(UsageError, match=words):
        make_target("npu", **options)


def test_the_layout_also_comes_from_the_onnx_target():
    target = make_target("onnx", io="edgesam-npu")
    assert "hoist_positional_encoding" in [step.name for step in target.pipeline(None)]
    interface = target.interface(load("edge_sam", config=FAMILY["edge_sam"]).config)
    assert isinstance(interface, Interface)
    assert interface.points == 5
