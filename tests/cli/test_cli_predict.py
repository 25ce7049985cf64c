"""run and everything: what they write, and that it is what PyTorch would have answered."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from command_line import COFFEE, DONE, HOPPER, PHOTOGRAPHS, USAGE, contents, edgesam_deploy
from PIL import Image

from edgesam_deploy.cli.results import check_results, results
from edgesam_deploy.errors import OutputError
from edgesam_deploy.model.masks import rle_to_mask
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.model.transforms import read_image
from edgesam_deploy.overlay import GROUND, LARGEST, SMALLEST, overlay_everything, overlay_masks
from edgesam_deploy.runtime import open_predictor

MASKS = ["mask_0.png", "mask_1.png", "mask_2.png"]


@pytest.fixture
def bundle(bundles):
    return bundles().path


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        (["--point", "300,190"], {"point_coords": [[300, 190]], "point_labels": [1]}),
        (["--box", "100,50,500,350"], {"box": [100, 50, 500, 350]}),
        (
            ["--point", "300,190,1", "--point", "100.5,100,0", "--box", "100,50,500,350"],
            {"point_coords": [[300, 190], [100.5, 100]], "point_labels": [1, 0], "box": [100, 50, 500, 350]},
        ),
    ],
    ids=["point", "box", "both"],
)
def test_masks_are_pytorchs(bundle, tiny_model, tmp_path, arguments, prompt):
    assert edgesam_deploy("run", bundle, COFFEE, "-o", tmp_path / "out", *arguments).code == DONE
    reference = SamPredictor(tiny_model)
    reference.set_image(read_image(COFFEE))
    masks, scores, _ = reference.predict(**prompt)
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*MASKS, "overlay.png", "result.json"])
    for mask, score, entry in zip(masks, scores, written["masks"], strict=True):
        picture = Image.open(tmp_path / "out" / entry["file"])
        assert (picture.mode, picture.size) == ("L", (600, 400))
        assert set(np.unique(picture)) <= {0, 255}
        assert (mask != (np.asarray(picture) == 255)).mean() < 1e-4  # a logit of 0 may fall to either side
        assert entry["area"] == (np.asarray(picture) == 255).sum()
        assert abs(entry["score"] - score) < 1e-4
    assert written["best"] == int(scores.argmax())
    assert written["size"] == [600, 400]
    assert written["image"] == "coffee.jpg"


def test_what_is_printed(bundle, tmp_path):
    found = edgesam_deploy("run", bundle, HOPPER, "-o", tmp_path, "--point", "250,250")
    lines = found.out.splitlines()
    assert [line.split()[0] for line in lines] == [str(tmp_path / name) for name in [*MASKS, "overlay.png"]]
    assert sum("best" in line for line in lines) == 1
    assert "random weights" in found.err


def test_json_is_what_the_file_holds(bundle, tmp_path):
    found = edgesam_deploy("run", bundle, HOPPER, "-o", tmp_path, "--point", "250,250", "--json")
    assert json.loads(found.out) == json.loads((tmp_path / "result.json").read_text())


@pytest.mark.parametrize(("asked", "count"), [("1", 1), ("3", 3), ("4", 4)])
def test_number_of_masks(bundle, tmp_path, asked, count):
    edgesam_deploy("run", bundle, HOPPER, "-o", tmp_path, "--point", "250,250", "--masks", "4")
    (tmp_path / "mask_9.png").write_bytes(b"not ours")
    edgesam_deploy("run", bundle, HOPPER, "-o", tmp_path, "--point", "250,250", "--masks", asked)
    left = sorted(path.name for path in tmp_path.glob("mask_*.png"))
    assert left == [
        *(f"mask_{i}.png" for i in range(count)),
        "mask_9.png",
    ]  # none of the earlier run's is taken for new


def test_an_artifact_with_one_mask(bundles, tmp_path):
    bundle = bundles(io="sam", return_single_mask=True).path
    assert edgesam_deploy("run", bundle, HOPPER, "-o", tmp_path / "out", "--point", "9,9").code == DONE
    assert [p.name for p in (tmp_path / "out").glob("mask*")] == ["mask_0.png"]
    found = edgesam_deploy("run", bundle, HOPPER, "-o", tmp_path / "three", "--point", "9,9", "--masks", "3")
    assert found.code == USAGE
    assert "--masks 3" in found.err
    assert not (tmp_path / "three").exists()


def picture_files(folder):
    """One file of each kind that people have; each 40 wide and 30 high unless its name says otherwise."""
    colour = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(colour)
    image.resize((1, 1)).save(folder / "one_pixel.png")
    image.resize((1, 300)).save(folder / "thin.png")
    image.convert("RGBA").save(folder / "rgba.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("1").save(folder / "bitonal.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(colour[:, :, 0].astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    turned = image.getexif()
    turned[0x0112] = 6
    image.rotate(90, expand=True).save(folder / "turned.jpg", exif=turned)
    image.save(os.fsencode(folder / "name_") + b"\xff.png", "PNG")


KINDS = [
    "one_pixel.png", "thin.png", "rgba.png", "grey.png", "bitonal.png", "palette.gif", "cmyk.jpg", "sixteen_bit.png",
    "turned.jpg", os.fsdecode(b"name_\xff.png"),
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS, ids=ascii)
def test_every_kind_of_picture_works(bundle, tmp_path, name):
    picture_files(tmp_path)
    out = tmp_path / "out"
    found = edgesam_deploy("run", bundle, tmp_path / name, "-o", out, "--point", "0.5,0.5", "--json")
    assert found.code == DONE, found.err
    size = {"one_pixel.png": (1, 1), "thin.png": (1, 300)}.get(name, (40, 30))
    assert {Image.open(out / mask).size for mask in MASKS} == {size}
    assert tuple(json.loads(found.out)["size"]) == size
    assert min(Image.open(out / "overlay.png").size) >= 20  # can be looked at
    found = edgesam_deploy("everything", bundle, tmp_path / name, "-o", out / "all", "--points-per-side", "2")
    assert found.code == DONE, found.err


def test_everything(bundle, tmp_path):
    options = ["--points-per-side", "4", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
    found = edgesam_deploy("everything", bundle, COFFEE, "-o", tmp_path, *options, "--box-nms-thresh", "0.99", "--json")
    assert found.code == DONE
    result = json.loads(found.out)
    assert result == json.loads((tmp_path / "masks.json").read_text())
    assert result["weights"]["source"] == "seeded"
    assert len(result["masks"]) > 1
    for record in result["masks"]:
        mask = rle_to_mask(record["segmentation"])
        assert mask.shape == (400, 600)
        assert mask.sum() == record["area"] > 0
        rows, columns = np.nonzero(mask)
        x, y, width, height = record["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max(), rows.max())
        assert record.keys() == {
            "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
        }  # fmt: skip
    assert Image.open(tmp_path / "overlay.png").width == 600
    assert "prompt 16 of 16" in found.err


def test_everything_finds_nothing(bundle, tmp_path):
    found = edgesam_deploy(
        "everything", bundle, COFFEE, "-o", tmp_path, "--points-per-side", "1", "--pred-iou-thresh", "2"
    )
    assert found.out.splitlines() == ["0 masks", str(tmp_path / "masks.json"), str(tmp_path / "overlay.png")]
    assert json.loads((tmp_path / "masks.json").read_text())["masks"] == []


# --- where results go ------------------------------------------------------------------------------------------------


def test_results_do_not_go_into_a_bundle(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    before = contents(tmp_path)
    for command in (["run", "--point", "9,9"], ["everything"]):
        found = edgesam_deploy(command[0], copy, COFFEE, *command[1:], "-o", copy)
        assert found.code == USAGE
        assert "is a bundle" in found.err
    assert contents(tmp_path) == before


def test_the_picture_is_not_overwritten(bundle, tmp_path):
    shutil.copy(COFFEE, tmp_path / "overlay.png")
    before = contents(tmp_path)
    found = edgesam_deploy("run", bundle, tmp_path / "overlay.png", "-o", tmp_path, "--point", "9,9")
    assert found.code == USAGE
    assert "overlay.png would be overwritten" in found.err
    assert contents(tmp_path) == before


def test_other_files_in_the_folder_stay(bundle, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "result.json").write_text('{"masks": [{"file": "notes.txt"}, {"file": "../x"}, 3]}')
    assert edgesam_deploy("run", bundle, COFFEE, "-o", tmp_path, "--point", "9,9").code == DONE
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert edgesam_deploy("run", bundle, COFFEE, "-o", tmp_path, "--point", "9,9").code == DONE


@pytest.mark.parametrize("name", ["[/red]", ":heart:", "with space", "é\n"], ids=ascii)
def test_names_of_folders_are_no_markup(bundle, tmp_path, name):
    found = edgesam_deploy("run", bundle, COFFEE, "-o", tmp_path / name, "--point", "9,9")
    assert found.code == DONE
    assert str(tmp_path / name / "overlay.png") in found.out


def test_long_paths_are_not_wrapped(bundle, tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    assert str(deep / "overlay.png") in edgesam_deploy("run", bundle, COFFEE, "-o", deep, "--point", "9,9").out.split()


def test_results_are_all_or_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), results(out) as folder:
        (folder / "mask_0.png").write_bytes(b"")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {}
    out.mkdir()
    with pytest.raises(OutputError, match="No space left"), results(out) as folder:
        (folder / "mask_0.png").write_bytes(b"")
        raise OSError(28, "No space left on device")
    assert contents(tmp_path) == {"out": None}


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    check_results(tmp_path / "fine", COFFEE)
    with pytest.raises(OutputError, match="loop"), results(tmp_path / "loop"):
        pass


# --- overlays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photograph", sorted(PHOTOGRAPHS.glob("*.jpg")), ids=lambda p: p.stem)
def test_overlays_show_mask_and_prompt(photograph):
    picture = read_image(photograph)
    height, width = picture.shape[:2]
    mask = np.zeros((1, height, width), bool)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = True
    x, y = 3 * width // 4, 3 * height // 4
    shown = overlay_masks(picture, mask, [0.5], [(x, y)], (10, 10, width - 10, height - 10))
    strip = len(shown) - height
    assert shown.shape[1] == width
    assert (shown[:strip] == GROUND).all(-1).mean() > 0.5  # the caption covers nothing
    assert (shown[:strip] == 255).all(-1).any()
    below = shown[strip:].astype(int)
    changed = np.abs(below - picture).sum(-1) > 30
    assert changed[height // 4 : height // 2, width // 4 : width // 2].mean() > 0.9
    assert not changed[height // 2 + 5 : y - 10, 20 : width // 4 - 5].any()
    assert changed[y - 3 : y + 4, x - 3 : x + 4].all()
    assert changed[10, 20 : width - 20].mean() > 0.9
    assert changed[20 : height - 20, 10].mean() > 0.9


def test_panels_are_sorted_and_of_a_size_to_look_at():
    masks = np.zeros((3, 2000, 3000), bool)
    masks[1, 500:1500, 500:2500] = True
    shown = overlay_masks(np.full((2000, 3000, 3), 90, np.uint8), masks, [0.1, 0.9, float("nan")], [], None)
    assert LARGEST < shown.shape[1] < 4 * LARGEST
    first = shown[: len(shown) // 2, : shown.shape[1] // 2]
    assert ((first[..., 2] > 130) & (first[..., 0] < 90)).mean() > 0.2  # the best is the first panel, and tinted
    tiny = overlay_masks(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 1), bool), [1.0], [(0.5, 0.5)], (0, 0, 1, 1))
    assert tiny.shape[1] == SMALLEST


def test_smaller_masks_lie_on_top():
    picture = np.full((400, 600, 3), 90, np.uint8)
    large, small = np.zeros((2, 400, 600), bool)
    large[50:350, 50:550], small[150:250, 250:350] = True, True
    records = [
        {"area": int(m.sum()), "segmentation": {"size": [400, 600], "counts": counts(m)}} for m in (small, large)
    ]
    shown = overlay_everything(picture, records)[-400:]
    assert len({tuple(shown[200, 300]), tuple(shown[100, 100]), tuple(shown[10, 10])}) == 3


def counts(mask):
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *changes, flat.size]).tolist()


def test_scores_in_the_file_are_numbers_that_json_has(bundle, tmp_path, monkeypatch):
    def unsure(self, *_, **__):
        return np.zeros((3, 400, 600), bool), np.array([np.nan, 0.5, 0.1], np.float32), None

    monkeypatch.setattr(type(open_predictor(bundle)), "predict", unsure)
    found = edgesam_deploy("run", bundle, COFFEE, "-o", tmp_path, "--point", "9,9", "--json")
    result = json.loads(found.out, parse_constant=pytest.fail)
    assert (result["best"], result["masks"][0]["score"]) == (1, None)
    json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
