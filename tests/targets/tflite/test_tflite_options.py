"""What can be asked of the tflite target, and what is refused before anything is converted."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY

from edgesam_deploy.contract import Interface, interface_from
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit, PromptError, UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.precision.calibration import calibration_files, encoder_inputs
from edgesam_deploy.precision.calibration_rows import HELD_OUT, calibration_set
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.quiet import quiet
from edgesam_deploy.targets.signatures import parse_signatures, signature_names, used_slots
from edgesam_deploy.targets.tflite import toolkits
from edgesam_deploy.targets.tflite.convert import stored

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"points": "dynamic"}, "--signatures 1,2,5"),
    ({"batch": "dynamic"}, "static shapes"),
    ({"signatures": "1,2", "points": 5}, "leave --points out"),
    ({"signatures": "1,x"}, "numbers of slots"),
    ({"signatures": "2,2"}, "different numbers"),
    ({"signatures": "0"}, "different numbers"),
    ({"io": "sam"}, "varying sizes"),
    ({"precision": "int4"}, "fp32, fp16, dynamic-int8, int8, w8a16"),
    ({"layout": "chwn"}, "nchw or nhwc"),
    ({"calibration": "."}, "takes none"),
    ({"single_file": True, "precision": "int8"}, "leave --single-file out"),
    ({"calibration": "/no/such/folder", "precision": "int8"}, "no such folder"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=str)
def test_options_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_target("tflite", **options)
    assert caught.value.exit_code == 2


def config(name: str = "edge_sam") -> Any:
    return load(name, config=FAMILY[name]).config


def test_a_decoder_per_signature() -> None:
    interface = make_target("tflite", signatures="1,5,2").interface(config())
    assert isinstance(interface, Interface)
    parts = interface.parts()
    assert list(parts) == ["image_encoder", "mask_decoder", "mask_decoder_2", "mask_decoder_1"]
    assert [parts[name].inputs[2].shape for name in list(parts)[1:]] == [(1, 5), (1, 2), (1, 1)]
    names = {"image_encoder": "encode", "mask_decoder": "decode_5", "mask_decoder_2": "decode_2",
             "mask_decoder_1": "decode_1"}  # fmt: skip
    assert interface.describe()["signatures"] == signature_names(interface) == names  # type: ignore[arg-type]
    again = interface_from(json.loads(json.dumps(interface.describe())))
    assert isinstance(again, Interface)
    assert again.points == 5


def test_semantic_models_have_no_signatures() -> None:
    with pytest.raises(UsageError, match="takes no prompts"):
        make_target("tflite", signatures="1,2").interface(config("cwsam"))


def test_numbers_of_slots() -> None:
    assert parse_signatures("1,5,2") == (5, 2, 1)
    labels = np.array([[1, -10, -1, -10, -10], [1, -10, -10, -10, -10]])
    assert used_slots(labels) == 3
    assert used_slots(np.full((1, 4), -10)) == 0


def test_layout_of_the_image() -> None:
    parts = make_target("tflite").interface(config()).parts(promptable=True)
    turned = make_target("tflite", layout="nhwc").stored(parts["image_encoder"])
    assert turned.inputs[0].shape == (1, 256, 256, 3)
    assert turned.outputs == parts["image_encoder"].outputs
    assert make_target("tflite").stored(parts["image_encoder"]) is parts["image_encoder"]
    labels = parts["mask_decoder"].inputs[2]
    assert stored(labels) is labels


def test_without_a_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkits.resolve_converter, "__defaults__", (("no_such_converter",),))
    with pytest.raises(MissingToolkit, match=r"pip install 'edgesam-deploy\[tflite\]'"):
        make_target("tflite").require_toolkits()


def test_only_the_cpu_runs_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--provider cuda"):
        make_target("tflite").load(tmp_path / "x.tflite", part="image_encoder", provider="cuda", threads=1)


def test_what_is_printed_is_kept_when_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    with quiet("being quiet"):
        print("from Python")
        os.write(2, b"from a native library\n")
    with (
        pytest.raises(EdgeSamDeployError, match="converting failed: ValueError: no lowering") as caught,
        quiet("converting"),
    ):
        os.write(1, b"the reason\n")
        raise ValueError("no lowering")
    log = Path(str(caught.value).rsplit(" ", 1)[1])
    assert "the reason" in log.read_text()
    log.unlink()
    with pytest.raises(PromptError, match="ours"), quiet("converting"):
        raise PromptError("ours")
    print("heard again")
    assert capfd.readouterr() == ("heard again\n", "")


# --- calibration ---


def test_the_shipped_photographs_calibrate() -> None:
    pictures = calibration_set(None).pictures
    assert len(pictures) >= 3
    assert HELD_OUT not in pictures  # parity is judged on it
    inputs = encoder_inputs(Interface(image_size=256), next(iter(pictures.values())))
    assert {name: (a.shape, a.dtype.name) for name, a in inputs.items()} == {"image": ((1, 3, 256, 256), "float32")}
    raw = encoder_inputs(Interface(image_size=256, embed_preprocess=True), next(iter(pictures.values())))
    assert raw["image"].shape == (1, 256, 256, 3)
    assert max(raw["image_size"]) == 256


def test_folders_without_pictures_and_broken_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no picture in it"):
        calibration_files(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"no picture in it can be read \(broken\.png") as caught:
        make_target("tflite", precision="int8", calibration=str(tmp_path))  # before anything is built
    assert caught.value.exit_code == 2
    whole = (files("edgesam_deploy") / "photographs" / "coffee.jpg").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])  # its header is good
    with pytest.raises(UsageError, match=r"broken\.png"):
        calibration_set(str(tmp_path))
