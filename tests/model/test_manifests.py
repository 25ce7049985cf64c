"""Every published SAM layout is reproduced by a configuration: names, shapes, order, and the numbers of parameters."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from edgesam_deploy.cost import parameters
from edgesam_deploy.model.configs import M1, MODELS, MaskDecoderConfig, intermediate_channels, model_config, override
from edgesam_deploy.model.mask_decoder_hq import HqMaskDecoder
from edgesam_deploy.model.sam import Sam

DATA = Path(__file__).parents[1] / "data"
LAYOUTS = {
    name: layout
    # the second file holds what the DyT project builds and recognition has no name for
    for file in ("layouts.json.gz", "layouts_dyt_fork.json.gz")
    for name, layout in json.loads(gzip.decompress((DATA / file).read_bytes())).items()
    if not name.startswith("cwsam")
}
HALF_DECODER = "mask_decoder_hq_layernorm"  # lies in the file without its transformer
FORK = {"image_encoder": {"rep_layout": "dyt_fork"}}
NO_FUSE = {"image_encoder": {"fuse": False}}
# layout -> model and changes; a layout that is not here goes by a model's own name
VARIANTS = {
    "edge_sam__dyt_fork": ("edge_sam", FORK),
    "vit_h_hq__dyt_fork": ("sam_hq_vit_h", {"mask_decoder": {"projections": "qvk"}}),
    "train_phase2_edge_sam_lora": ("edge_sam", {"mask_decoder": {"lora": 16}}),
    "repvit_m1_fuse": ("repvit_m1", {}),
    "repvit_m2_fuse": ("repvit_m2", {}),
    "repvit_m3_fuse": ("repvit_m3", {}),
    "repvit_m1_nofuse": ("repvit_m1", NO_FUSE),
    "repvit_m2_nofuse": ("repvit_m2", NO_FUSE),
    "repvit_m3_nofuse": ("repvit_m3", NO_FUSE),
    "repvit_m1_dyt_fuse": ("repvit_m1_dyt", {}),
}
PROMPT_ENCODER = 6_220
# total, image encoder, mask decoder
COUNTS = {
    "edge_sam": (9_582_112, 5_517_552, 4_058_340),
    "edge_sam__dyt_fork": (9_586_192, 5_521_632, 4_058_340),
    "edge_sam_dyt": (9_586_204, 5_521_634, 4_058_350),
    "edge_sam_dyt_frozen_mask": (9_586_194, 5_521_634, 4_058_340),
    "edge_sam_dyt_hq": (10_380_385, 5_521_634, 4_852_531),
    "vit_b": (93_735_472, 89_670_912, 4_058_340),
    "vit_l": (312_342_832, 308_278_272, 4_058_340),
    "vit_h": (641_090_608, 637_026_048, 4_058_340),
    "vit_h_hq__dyt_fork": (642_686_000, 637_026_048, 5_653_732),
    "sam_hq_vit_b": (94_806_576, 89_670_912, 5_129_444),
    "sam_hq_vit_l": (313_676_080, 308_278_272, 5_391_588),
    "sam_hq_vit_h": (642_686_000, 637_026_048, 5_653_732),
    "sam_hq_vit_tiny": (10_578_604, 6_065_532, 4_506_852),
}


def model_of(layout):
    name, changes = VARIANTS.get(layout, (layout, {}))
    with torch.device("meta"):
        return Sam(override(model_config(name), changes), name)


def listed(state):
    return [(name, list(value.shape)) for name, value in state.items()]


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {HALF_DECODER}))
def test_names_shapes_and_order(layout):
    model = model_of(layout)
    state = (model if model.promptable else model.image_encoder).state_dict()
    assert listed(state) == list(LAYOUTS[layout].items())


def test_the_hq_decoder_with_norms():
    """The DyT project's HQ decoder also comes with LayerNorm, as no registered model has it."""
    config = MaskDecoderConfig(hq="early", norm="layer")
    with torch.device("meta"):
        state = HqMaskDecoder(256, config, intermediate_channels(M1)).state_dict()
    rest = {name: value for name, value in state.items() if not name.startswith("transformer.")}
    assert listed(rest) == list(LAYOUTS[HALF_DECODER].items())
    plain = model_of("edge_sam").mask_decoder.transformer.state_dict()
    assert [name.removeprefix("transformer.") for name in state if name.startswith("transformer.")] == list(plain)


@pytest.mark.parametrize("layout", COUNTS)
def test_numbers_of_parameters(layout):
    total, encoder, decoder = COUNTS[layout]
    counted = parameters(model_of(layout))
    assert counted.children == {
        "image_encoder": encoder, "prompt_encoder": PROMPT_ENCODER, "mask_decoder": decoder,
    }  # fmt: skip
    assert counted.total == total


def test_nothing_is_left_out():
    """Every registered SAM model has a published layout, but for EdgeSAM's larger encoders, which were never released
    with a decoder, and the one that is trained here, and every layout is reached."""
    sams = {name for name, config in MODELS.items() if not name.startswith("cwsam")}
    reached = {VARIANTS.get(layout, (layout,))[0] for layout in LAYOUTS.keys() - {HALF_DECODER}}
    assert sams - reached == {"edge_sam_demo", "edge_sam_m2", "edge_sam_m3"}
    assert set(LAYOUTS) >= set(VARIANTS) | set(COUNTS)


def test_order_of_projections_is_the_only_difference_between_the_two_teachers():
    fork, published = (LAYOUTS[name] for name in ("vit_h_hq__dyt_fork", "sam_hq_vit_h"))
    assert fork == published
    assert list(fork) != list(published)


def test_sizes_without_a_name():
    """M2 and M3 with a decoder: EdgeSAM's decoder under their encoders."""
    for size in ("m2", "m3"):
        encoder = {f"image_encoder.{name}": shape for name, shape in LAYOUTS[f"repvit_{size}_fuse"].items()}
        rest = {name: shape for name, shape in LAYOUTS["edge_sam"].items() if not name.startswith("image_encoder.")}
        with torch.device("meta"):
            model = Sam(model_config(f"edge_sam_{size}"), f"edge_sam_{size}")
        assert dict(listed(model.state_dict())) == encoder | rest
