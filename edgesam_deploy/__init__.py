"""Deploy EdgeSAM-family segmentation models: traced, rewritten by proven passes, emitted, checked against PyTorch.

    import edgesam_deploy as ed

    model = ed.load("edge_sam", checkpoint="edge_sam_3x.pth")
    bundle = ed.build(model, target="onnx", out="out/edge_sam")
    predictor = ed.open("out/edge_sam")
    predictor.set_image(image)
    masks, scores, low_res_logits = predictor.predict(point_coords=[[500, 375]], point_labels=[1])

Names are imported when they are used: importing this package, opening and running a bundle need no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Bundle": "edgesam_deploy.bundle",
    "BundlePredictor": "edgesam_deploy.runtime",
    "BundleSegmenter": "edgesam_deploy.runtime",
    "Cwsam": "edgesam_deploy.model.cwsam.model",
    "CwsamPredictor": "edgesam_deploy.model.cwsam.predictor",
    "EdgeSamDeployError": "edgesam_deploy.errors",
    "Sam": "edgesam_deploy.model.sam",
    "SamAutomaticMaskGenerator": "edgesam_deploy.model.mask_generator",
    "SamPredictor": "edgesam_deploy.model.predictor",
    "SemanticMetrics": "edgesam_deploy.model.semantic_metrics",
    "build": "edgesam_deploy.builder",
    "check": "edgesam_deploy.parity",
    "load": "edgesam_deploy.model.registry",
    "open": "edgesam_deploy.runtime",
    "quantize": "edgesam_deploy.quantizer",
    "ranges": "edgesam_deploy.precision.analyse",
    "read_image": "edgesam_deploy.model.transforms",
    "sam_model_registry": "edgesam_deploy.model.registry",
    "verify": "edgesam_deploy.bundle",
}
_RENAMED = {"open": "open_artifact"}

if TYPE_CHECKING:
    from edgesam_deploy.builder import build as build
    from edgesam_deploy.bundle import Bundle as Bundle
    from edgesam_deploy.bundle import verify as verify
    from edgesam_deploy.errors import EdgeSamDeployError as EdgeSamDeployError
    from edgesam_deploy.model.cwsam.model import Cwsam as Cwsam
    from edgesam_deploy.model.cwsam.predictor import CwsamPredictor as CwsamPredictor
    from edgesam_deploy.model.mask_generator import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
    from edgesam_deploy.model.predictor import SamPredictor as SamPredictor
    from edgesam_deploy.model.registry import load as load
    from edgesam_deploy.model.registry import sam_model_registry as sam_model_registry
    from edgesam_deploy.model.sam import Sam as Sam
    from edgesam_deploy.model.semantic_metrics import SemanticMetrics as SemanticMetrics
    from edgesam_deploy.model.transforms import read_image as read_image
    from edgesam_deploy.parity import check as check
    from edgesam_deploy.precision.analyse import ranges as ranges
    from edgesam_deploy.quantizer import quantize as quantize
    from edgesam_deploy.runtime import BundlePredictor as BundlePredictor
    from edgesam_deploy.runtime import BundleSegmenter as BundleSegmenter
    from edgesam_deploy.runtime import open_artifact as open  # noqa: F401 - exported under that name

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return __all__
