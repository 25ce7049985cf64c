"""Rewrites of the traced program, shared by every target."""

from edgesam_deploy.passes.aten.absorb_channel_offset import absorb_channel_offset
from edgesam_deploy.passes.aten.absorb_constant_projections import absorb_constant_projections
from edgesam_deploy.passes.aten.absorb_pointwise_conv import absorb_pointwise_conv
from edgesam_deploy.passes.aten.absorb_token_projections import absorb_token_projections
from edgesam_deploy.passes.aten.boolean_to_float import boolean_to_float
from edgesam_deploy.passes.aten.canonicalize_cross_attention import canonicalize_cross_attention
from edgesam_deploy.passes.aten.canonicalize_given_queries import canonicalize_given_queries
from edgesam_deploy.passes.aten.channel_last_upscaling import channel_last_upscaling
from edgesam_deploy.passes.aten.decompose_fft import decompose_fft
from edgesam_deploy.passes.aten.decompose_gelu import decompose_gelu
from edgesam_deploy.passes.aten.decompose_layer_norm import decompose_layer_norm
from edgesam_deploy.passes.aten.decompose_layer_norm_2d import decompose_layer_norm_2d
from edgesam_deploy.passes.aten.decompose_layer_norm_fp32 import decompose_layer_norm_fp32
from edgesam_deploy.passes.aten.decompose_softmax import decompose_softmax
from edgesam_deploy.passes.aten.decompose_spatial_mean import decompose_spatial_mean
from edgesam_deploy.passes.aten.eliminate_dead import eliminate_dead
from edgesam_deploy.passes.aten.eliminate_dead_rows import eliminate_dead_rows
from edgesam_deploy.passes.aten.eliminate_identity import eliminate_identity
from edgesam_deploy.passes.aten.eliminate_unit_batch import eliminate_unit_batch
from edgesam_deploy.passes.aten.fold_batch_norm import fold_batch_norm
from edgesam_deploy.passes.aten.fold_constants import fold_constants
from edgesam_deploy.passes.aten.fold_dyt_affine import fold_dyt_affine
from edgesam_deploy.passes.aten.fold_scale import fold_scale
from edgesam_deploy.passes.aten.fuse_channel_norm import fuse_channel_norm
from edgesam_deploy.passes.aten.fuse_gelu import fuse_gelu
from edgesam_deploy.passes.aten.gather_to_slice import gather_to_slice
from edgesam_deploy.passes.aten.gelu_to_tanh import gelu_to_tanh
from edgesam_deploy.passes.aten.hoist_positional_encoding import hoist_positional_encoding
from edgesam_deploy.passes.aten.legalize_bicubic import legalize_bicubic
from edgesam_deploy.passes.aten.legalize_bicubic_channel_last import legalize_bicubic_channel_last
from edgesam_deploy.passes.aten.legalize_comparison_sums import legalize_comparison_sums
from edgesam_deploy.passes.aten.legalize_matmul_rank import legalize_matmul_rank
from edgesam_deploy.passes.aten.legalize_moe_routing import legalize_moe_routing
from edgesam_deploy.passes.aten.legalize_resize import legalize_resize
from edgesam_deploy.passes.aten.limit_rank import limit_rank
from edgesam_deploy.passes.aten.linear_to_conv import linear_to_conv
from edgesam_deploy.passes.aten.merge_label_rows import merge_label_rows
from edgesam_deploy.passes.aten.merge_parallel_convs import merge_parallel_convs
from edgesam_deploy.passes.aten.merge_parallel_heads import merge_parallel_heads
from edgesam_deploy.passes.aten.pixels_to_planes import pixels_to_planes
from edgesam_deploy.passes.aten.tokens_to_maps import tokens_to_maps

__all__ = [
    "absorb_channel_offset",
    "absorb_constant_projections",
    "absorb_pointwise_conv",
    "absorb_token_projections",
    "boolean_to_float",
    "canonicalize_cross_attention",
    "canonicalize_given_queries",
    "channel_last_upscaling",
    "decompose_fft",
    "decompose_gelu",
    "decompose_layer_norm",
    "decompose_layer_norm_2d",
    "decompose_layer_norm_fp32",
    "decompose_softmax",
    "decompose_spatial_mean",
    "eliminate_dead",
    "eliminate_dead_rows",
    "eliminate_identity",
    "eliminate_unit_batch",
    "fold_batch_norm",
    "fold_constants",
    "fold_dyt_affine",
    "fold_scale",
    "fuse_channel_norm",
    "fuse_gelu",
    "gather_to_slice",
    "gelu_to_tanh",
    "hoist_positional_encoding",
    "legalize_bicubic",
    "legalize_bicubic_channel_last",
    "legalize_comparison_sums",
    "legalize_matmul_rank",
    "legalize_moe_routing",
    "legalize_resize",
    "limit_rank",
    "linear_to_conv",
    "merge_label_rows",
    "merge_parallel_convs",
    "merge_parallel_heads",
    "pixels_to_planes",
    "tokens_to_maps",
]
