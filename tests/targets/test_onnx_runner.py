"""ONNX Runtime and its providers: one that cannot be started is an error, never the CPU in its place."""

from __future__ import annotations

import onnxruntime
import pytest

from edgesam_deploy.devices import runner
from edgesam_deploy.errors import BundleError, MissingToolkit
from edgesam_deploy.targets.onnx import OnnxRunner

AVAILABLE = ["CUDAExecutionProvider", "CPUExecutionProvider"]


class Fallen:
    """A session that took the CPU, as ONNX Runtime's do where a provider's libraries are missing."""

    def __init__(self, *_: object, **how: object) -> None:
        self.how = how

    def get_providers(self):
        return AVAILABLE[1:]


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: AVAILABLE)


def test_a_session_that_fell_back_is_refused(monkeypatch, bundles):
    file = bundles().part("image_encoder")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(MissingToolkit, match="could not start it"):
        OnnxRunner(file, "cuda")
    with pytest.raises(RuntimeError, match="could not start it"):
        runner.OnnxPart(file, "image_encoder", "cuda", 1)


def test_a_session_that_fails_is_not_tried_again_on_the_cpu(monkeypatch, bundles):
    asked = []

    class Failing(Fallen):
        def __init__(self, *_: object, **how: object) -> None:
            asked.append(how["enable_fallback"])
            raise ValueError("no kernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Failing)
    with pytest.raises(BundleError, match="no kernel"):
        OnnxRunner(bundles().part("image_encoder"), "cuda")
    with pytest.raises(ValueError, match="no kernel"):
        runner.OnnxPart(bundles().part("image_encoder"), "image_encoder", "cuda", 1)
    assert asked == [0, 0]
