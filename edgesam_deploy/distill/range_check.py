"""What fp16 would break of a student in the middle of its training, by the analysis of ``ranges``."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.distill.convert import deployable, without_lora
from edgesam_deploy.errors import DataError, ImageError
from edgesam_deploy.model.registry import configured, empty
from edgesam_deploy.model.strict import load_strict
from edgesam_deploy.precision.analyse import ranges
from edgesam_deploy.precision.ranges import Candidate, Kind

if TYPE_CHECKING:
    from edgesam_deploy.distill.data.items import Items
    from edgesam_deploy.distill.recipe import Recipe
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.sam import Sam

PICTURES = 2  # of the data set, the first that can be read


def fp16_candidates(student: Sam | Cwsam, recipe: Recipe, items: Items) -> dict[Kind, list[Candidate]]:
    """By kind, the worst first, on pictures of the data set. A copy on the CPU is looked at, in evaluation mode and
    with the weights that would be saved; no random number is drawn.
    """
    config = configured(recipe.model.name, config=without_lora(recipe.model.config))
    copy = empty(config, recipe.model.name)
    weights = {name: value.detach().cpu() for name, value in deployable(student.state_dict()).items()}
    load_strict(copy, weights, where=f"{student.name} in training")
    found = ranges(copy, pictures=_pictures(items)).candidates()
    return {kind: [candidate for candidate in found if candidate.kind == kind] for kind in get_args(Kind)}


def _pictures(items: Items) -> dict[str, NDArray[np.uint8]]:
    shown: dict[str, NDArray[np.uint8]] = {}
    for index in range(len(items)):
        if len(shown) == PICTURES:
            break
        try:
            read = items.source.read(index, masks=False)
        except (DataError, ImageError):
            continue
        shown[read.name] = read.image
    return shown
