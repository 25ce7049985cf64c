"""Rewrites of ONNX graphs: what concerns that format itself."""

from edgesam_deploy.passes.onnx.boolean_to_float import boolean_to_float
from edgesam_deploy.passes.onnx.canonicalize_names import canonicalize_names
from edgesam_deploy.passes.onnx.canonicalize_reshape import canonicalize_reshape
from edgesam_deploy.passes.onnx.cast_to_half import cast_to_half
from edgesam_deploy.passes.onnx.eliminate_common import eliminate_common
from edgesam_deploy.passes.onnx.eliminate_dead import eliminate_dead
from edgesam_deploy.passes.onnx.eliminate_expand import eliminate_expand
from edgesam_deploy.passes.onnx.eliminate_identity import eliminate_identity
from edgesam_deploy.passes.onnx.fold_branches import fold_branches
from edgesam_deploy.passes.onnx.fold_constants import fold_constants
from edgesam_deploy.passes.onnx.fold_shapes import fold_shapes
from edgesam_deploy.passes.onnx.freeze_dims import freeze_dims
from edgesam_deploy.passes.onnx.fuse_gelu import fuse_gelu
from edgesam_deploy.passes.onnx.fuse_layer_norm import fuse_layer_norm
from edgesam_deploy.passes.onnx.fuse_reshapes import fuse_reshapes
from edgesam_deploy.passes.onnx.legalize_cast_like import legalize_cast_like
from edgesam_deploy.passes.onnx.legalize_gather import legalize_gather
from edgesam_deploy.passes.onnx.legalize_layer_norm import legalize_layer_norm
from edgesam_deploy.passes.onnx.legalize_one_hot import legalize_one_hot
from edgesam_deploy.passes.onnx.legalize_reciprocal import legalize_reciprocal
from edgesam_deploy.passes.onnx.narrow_int64_data import narrow_int64_data
from edgesam_deploy.passes.onnx.set_opset import set_opset
from edgesam_deploy.passes.onnx.simplify import simplify
from edgesam_deploy.passes.onnx.split_large_ops import split_large_ops

__all__ = [
    "boolean_to_float",
    "canonicalize_names",
    "canonicalize_reshape",
    "cast_to_half",
    "eliminate_common",
    "eliminate_dead",
    "eliminate_expand",
    "eliminate_identity",
    "fold_branches",
    "fold_constants",
    "fold_shapes",
    "freeze_dims",
    "fuse_gelu",
    "fuse_layer_norm",
    "fuse_reshapes",
    "legalize_cast_like",
    "legalize_gather",
    "legalize_layer_norm",
    "legalize_one_hot",
    "legalize_reciprocal",
    "narrow_int64_data",
    "set_opset",
    "simplify",
    "split_large_ops",
]
