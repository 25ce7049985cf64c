"""Rewrites of the traced program, shared by every target."""

from edgesam_deploy.passes.aten.channel_last_upscaling import channel_last_upscaling
from edgesam_deploy.passes.aten.decompose_fft import decompose_fft
from edgesam_deploy.passes.aten.decompose_spatial_mean import decompose_spatial_mean
from edgesam_deploy.passes.aten.eliminate_dead import eliminate_dead
from edgesam_deploy.passes.aten.eliminate_identity import eliminate_identity
from edgesam_deploy.passes.aten.fold_batch_norm import fold_batch_norm
from edgesam_deploy.passes.aten.fold_constants import fold_constants
from edgesam_deploy.passes.aten.gather_to_slice import gather_to_slice
from edgesam_deploy.passes.aten.legalize_bicubic import legalize_bicubic
from edgesam_deploy.passes.aten.legalize_moe_routing import legalize_moe_routing
from edgesam_deploy.passes.aten.limit_rank import limit_rank
from edgesam_deploy.passes.aten.merge_parallel_convs import merge_parallel_convs

__all__ = [
    "channel_last_upscaling",
    "decompose_fft",
    "decompose_spatial_mean",
    "eliminate_dead",
    "eliminate_identity",
    "fold_batch_norm",
    "fold_constants",
    "gather_to_slice",
    "legalize_bicubic",
    "legalize_moe_routing",
    "limit_rank",
    "merge_parallel_convs",
]
