"""One decoder per number of slots in one file: the interface that asks for them, the names of the signatures, and
which of them a prompt runs in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER, Interface, PartSpec
from edgesam_deploy.errors import PromptError, UsageError
from edgesam_deploy.model.prompts import EMPTY

ENCODE, DECODE, SEGMENT = "encode", "decode", "segment"
LABELS, COORDINATES = "point_labels", ("point_coords", "point_embedding_pe")


@dataclass(frozen=True)
class SignedInterface(Interface):
    """An interface whose decoder exists for several N; ``points`` is the largest, ``signatures`` all, descending.

    The parts are ``mask_decoder`` for the largest and ``mask_decoder_<N>`` for the others.
    """

    signatures: tuple[int, ...] = ()

    def parts(self, *, promptable: bool = True) -> dict[str, PartSpec]:
        parts = super().parts(promptable=promptable)
        if promptable:
            for count in self.signatures[1:]:
                fewer = replace(self, points=count, signatures=())
                parts[f"{MASK_DECODER}_{count}"] = fewer.parts()[MASK_DECODER]
        return parts

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "signatures": signature_names(self)}


def signed(interface: Interface, signatures: str) -> SignedInterface:
    """``interface`` with a decoder for each number of slots in ``1,2,5``; its ``points`` are the largest of them."""
    known = {f.name: getattr(interface, f.name) for f in fields(Interface)}
    return SignedInterface(**known, signatures=parse_signatures(signatures))


def signature_names(interface: SignedInterface) -> dict[str, str]:
    """Part -> the name of its signature."""
    return {part: signature_name(part, spec) for part, spec in interface.parts().items()}


def signature_name(part: str, spec: PartSpec) -> str:
    """``encode``, ``decode_<N>`` or ``segment``."""
    if part == IMAGE_ENCODER:
        return ENCODE
    if not part.startswith(MASK_DECODER):
        return SEGMENT
    count = next(tensor.shape[1] for tensor in spec.inputs if tensor.role == "labels")
    return f"{DECODE}_{count}"


def parse_signatures(text: str) -> tuple[int, ...]:
    """``1,2,5`` as (5, 2, 1). Raises UsageError for what is no list of different numbers from 1 to 64."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError as e:
        raise UsageError(f"--signatures {text}: must be numbers of slots with commas between, such as 1,2,5") from e
    if not all(1 <= count <= 64 for count in counts) or len(set(counts)) < len(counts):
        raise UsageError(f"--signatures {text}: must be different numbers from 1 to 64")
    return tuple(sorted(counts, reverse=True))


def used_slots(labels: NDArray[Any]) -> int:
    """How many slots of (B, N) are left when those that are empty in every prompt are cut off at the end."""
    filled = np.flatnonzero((labels != EMPTY).any(axis=0))
    return int(filled[-1]) + 1 if filled.size else 0


def fitting(counts: Iterable[int], labels: NDArray[Any]) -> int:
    """The smallest of ``counts`` whose slots hold the prompts. Raises PromptError where none does."""
    used, known = used_slots(labels), list(counts)
    if used > max(known):
        raise PromptError(f"{used} slots; the artifact has at most {max(known)}")
    return min(count for count in known if count >= used)


def with_slots(name: str, value: NDArray[Any], count: int) -> NDArray[Any]:
    """An input of prompts (B, N, ...) with ``count`` slots: the last ones cut off (exact, if they are empty), or empty
    ones added. Other inputs as they are.
    """
    if name != LABELS and name not in COORDINATES:
        return value
    after = [(0, 0), (0, max(count - value.shape[1], 0)), *[(0, 0)] * (value.ndim - 2)]
    return np.pad(value[:, :count], after, constant_values=EMPTY if name == LABELS else 0)
