"""Rewrites of ONNX graphs: what concerns that format itself."""

from edgesam_deploy.passes.onnx.canonicalize_names import canonicalize_names
from edgesam_deploy.passes.onnx.canonicalize_reshape import canonicalize_reshape
from edgesam_deploy.passes.onnx.eliminate_common import eliminate_common
from edgesam_deploy.passes.onnx.eliminate_dead import eliminate_dead
from edgesam_deploy.passes.onnx.eliminate_identity import eliminate_identity
from edgesam_deploy.passes.onnx.fold_constants import fold_constants
from edgesam_deploy.passes.onnx.legalize_cast_like import legalize_cast_like
from edgesam_deploy.passes.onnx.legalize_layer_norm import legalize_layer_norm

__all__ = [
    "canonicalize_names",
    "canonicalize_reshape",
    "eliminate_common",
    "eliminate_dead",
    "eliminate_identity",
    "fold_constants",
    "legalize_cast_like",
    "legalize_layer_norm",
]
