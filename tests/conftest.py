"""Small models and bundles that the tests share; built once per run."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import picture

from edgesam_deploy import plugins
from edgesam_deploy.builder import build
from edgesam_deploy.distill.synthetic import synthesize
from edgesam_deploy.model.registry import load

# the models here are small: a second thread only waits for the first, most of all beside a busy neighbour
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _translations_are_read_once():
    """The exporter collects its 557 translations anew for every export: a second of every tiny build."""
    from torch.onnx._internal.exporter._registration import onnxscript_apis

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        yield


TINY = {
    "image_size": 256,
    "embed_dim": 64,
    "image_encoder": {
        "channels": (16, 24, 32, 48), "depths": (2, 2, 3, 2), "squeeze": (0, 2), "out_channels": 64,
    },
    "mask_decoder": {"mlp_dim": 128},
}  # fmt: skip


SMALL_DECODER = {"mlp_dim": 128}
TINY_VIT = {
    "image_size": 256,
    "embed_dim": 64,
    "image_encoder": {
        "width": 48, "depth": 3, "heads": 3, "global_blocks": (1,), "window": 7, "out_channels": 64,
    },
    "mask_decoder": SMALL_DECODER,
}  # fmt: skip
TINY_TINY_VIT = {
    "image_size": 256,
    "embed_dim": 64,
    "image_encoder": {
        "widths": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "heads": (1, 2, 3, 4), "windows": (4, 5, 6, 4),
        "out_channels": 64,
    },
    "mask_decoder": SMALL_DECODER,
}  # fmt: skip
EXAMPLE_PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
_CWSAM = json.loads((Path(__file__).parent / "data" / "cwsam_configs.json").read_text())
FAMILY = {
    "edge_sam": TINY,
    "edge_sam_dyt": TINY,
    "edge_sam_dyt_frozen_mask": TINY,
    "edge_sam_dyt_hq": TINY,
    "vit_b": TINY_VIT,
    "sam_hq_vit_b": TINY_VIT,
    "sam_hq_vit_tiny": TINY_TINY_VIT,
    "cwsam": _CWSAM["cwsam_tiny"],
    "cwsam_moe_3b": _CWSAM["cwsam_moe3b_tiny"],
    "cwsam_hierarchical_moe_10b": _CWSAM["cwsam_h10b_tiny"],
}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What commands keep between calls lies in a folder of the run's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESAM_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """``family(name, io=...)``: a model of the family, some 300 times smaller, and its bundle; each built once."""
    built = {}

    def get(name, proof="off", **options):
        key = name, proof, repr(sorted(options.items()))
        if key not in built:
            model = load(name, seed=0, config=FAMILY[name])
            folder = tmp_path_factory.mktemp(name) / "onnx"
            pictures = {"scene": picture(150, 225, 10)}
            built[key] = model, build(model, "onnx", folder, proof=proof, pictures=pictures, **options)
        return built[key]

    return get


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


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A data set in SA-1B's layout, six scenes to train on and three others; read only."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 6), ("val", 3)):
        list(synthesize(folder, count=count, size=96, split=split))
    return folder


@pytest.fixture
def installed_plugin(tmp_path_factory, monkeypatch):
    """The example package where Python finds it, with its entry points, as pip would have put it."""
    place = tmp_path_factory.mktemp("plugin") / "site"
    source = shutil.copytree(EXAMPLE_PLUGIN, place.parent / "source")
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--target", str(place), str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place), prepend=":")
    plugins.plugins.cache_clear()
    yield place
    plugins.plugins.cache_clear()
    sys.modules.pop("edgesam_deploy_example", None)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
