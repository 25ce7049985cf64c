"""What the converter's frontend must be told so that it keeps an operator's meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.passes.program import Program
from edgesam_deploy.targets.coreml.interpreter import open_mlpackage

pytest.importorskip("coremltools")

from edgesam_deploy.targets.coreml.convert import convert


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_keeps_its_form(tmp_path: Path, approximate: str) -> None:
    """The two differ by 4.7e-4 near 2.2; the frontend overlooks a keyword."""
    module, x = torch.nn.GELU(approximate=approximate), torch.linspace(-4, 4, 64).reshape(1, 64)
    exported = torch.export.export(module, (x,))
    spec = TensorSpec("x", (1, 64)), TensorSpec("y", (1, 64))
    path = tmp_path / "gelu.mlpackage"
    convert(Program("gelu", spec[:1], spec[1:], exported), deployment_target="iOS17", half=False).save(str(path))
    found = open_mlpackage(path).run({"x": x.numpy()})["y"]
    assert np.abs(found - module(x).numpy()).max() < 1e-6
