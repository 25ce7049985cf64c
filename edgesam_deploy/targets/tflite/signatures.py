"""One decoder per number of slots in one file: the interface that asks for them, and the names of the signatures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER, Interface, PartSpec
from edgesam_deploy.errors import UsageError

ENCODE, DECODE, SEGMENT = "encode", "decode", "segment"


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
