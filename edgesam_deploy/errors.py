"""Every error the toolkit raises on purpose, with the exit code its command ends with.

    EdgeSamDeployError           1   something went wrong; the message says what, where and the next step
    ├── UsageError               2   a wrong option, name, shape or value
    │   ├── UnknownName          2   a model, target, pass or checkpoint name that is not in its table
    │   ├── PromptError          2   points, boxes or masks that do not fit the contract
    │   ├── ImageError           2   a file that is not a picture, or an array that is not (H, W, 3) uint8
    │   └── OutputError          2   an output folder that exists, is not ours, or cannot be written
    ├── CheckpointError          1   a checkpoint that is missing, truncated, hostile or of another model
    ├── DataError                1   a data set, sample or record that is missing, damaged or of another layout
    ├── TrainingError            1   a training run that cannot go on or be resumed
    ├── PassError                1   a pass left its declared bound, or a program is malformed
    ├── TooLarge                 1   a build that does not fit into memory
    ├── BundleError              1   a bundle that is incomplete or does not match its manifest
    ├── MissingToolkit           3   a vendor toolkit, device or download that is not available here
    ├── ParityError              4   an artifact whose outputs are not the reference's
    ├── UnsupportedOperators     5   operators the target does not run
    └── BenchmarkRegression      6   slower than the figures it was compared with

Exit code 0 is success. House rule: a message names *what* failed, *where* (file, tensor, pass, option), and the
*next step*.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EdgeSamDeployError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(EdgeSamDeployError):
    """A wrong option, name, shape or value."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not in its table; the message lists the closest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class PromptError(UsageError):
    """Points, boxes or masks that do not fit the contract."""


class ImageError(UsageError):
    """A file that is not a picture, or an array that is not (H, W, 3) uint8."""


class OutputError(UsageError):
    """An output folder that exists already, is not a bundle, or cannot be written."""


class CheckpointError(EdgeSamDeployError):
    """A checkpoint that is missing, truncated, hostile or made for another model."""


class DataError(EdgeSamDeployError):
    """A data set, sample or record that is missing, damaged or of another layout."""


class TrainingError(EdgeSamDeployError):
    """A training run that cannot go on or be resumed."""


class PassError(EdgeSamDeployError):
    """A pass left the bound it declares, or left a malformed program behind."""


class TooLarge(EdgeSamDeployError):
    """A build that does not fit into memory."""


class BundleError(EdgeSamDeployError):
    """A bundle that is incomplete or does not match its manifest."""


class MissingToolkit(EdgeSamDeployError):
    """A vendor toolkit, device or download that is not available here."""

    exit_code = 3


class ParityError(EdgeSamDeployError):
    """An artifact whose outputs are not the reference's."""

    exit_code = 4


class UnsupportedOperators(EdgeSamDeployError):
    """Operators the target does not run."""

    exit_code = 5


class BenchmarkRegression(EdgeSamDeployError):
    """Slower than the figures it was compared with."""

    exit_code = 6
