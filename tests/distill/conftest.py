"""A small synthetic data set that the tests of training share."""

from __future__ import annotations

import pytest

from edgesam_deploy.distill.synthetic import synthesize


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Six scenes to train on and three others, in SA-1B's layout; read only."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 6), ("val", 3)):
        list(synthesize(folder, count=count, size=96, split=split))
    return folder
