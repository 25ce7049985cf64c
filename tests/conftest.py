"""Small models and bundles that the tests share; built once per run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.model.registry import load

# the models here are small: a second thread only waits for the first, most of all beside a busy neighbour
torch.set_num_threads(1)

TINY = {
    "image_size": 256,
    "embed_dim": 64,
    "image_encoder": {
        "channels": (16, 24, 32, 48), "depths": (2, 2, 3, 2), "squeeze": (0, 2), "out_channels": 64,
    },
    "mask_decoder": {"mlp_dim": 128},
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model():
    """EdgeSAM with every kind of layer, some 300 times smaller: the whole path in a second."""
    return load("edge_sam", seed=0, config=TINY)


@pytest.fixture(scope="session")
def bundles(tiny_model, tmp_path_factory):
    """``bundles(points=4, ...)``: the tiny model built with these options, each set of options once."""
    built = {}

    def get(**options):
        key = repr(sorted(options.items()))
        if key not in built:
            folder = tmp_path_factory.mktemp("bundle") / "onnx"
            pictures = {"scene": picture(150, 225, 10)}
            built[key] = build(tiny_model, "onnx", folder, proof="off", pictures=pictures, **options)
        return built[key]

    return get


@pytest.fixture(scope="session")
def scene():
    return picture(180, 240, 4)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
