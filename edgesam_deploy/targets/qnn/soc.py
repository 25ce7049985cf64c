"""The Snapdragon chips that a context binary can be made for."""

from __future__ import annotations

from dataclasses import dataclass

from edgesam_deploy.errors import UsageError


@dataclass(frozen=True)
class Soc:
    """A chip: its name, Qualcomm's number for it, the version of its HTP, and whether that computes in fp16."""

    name: str
    number: int
    arch: int
    fp16: bool


# the compiler of QAIRT 2.51 made fp16 binaries for each of the first five, and failed to for the last
SOCS = (
    Soc("SM8450", 36, 69, True),
    Soc("SM8550", 43, 73, True),
    Soc("SM8650", 57, 75, True),
    Soc("SM8750", 69, 79, True),
    Soc("SM8850", 87, 81, True),
    Soc("SM8350", 30, 68, False),
)
DEFAULT_SOC = "SM8650"


def soc_named(name: str) -> Soc:
    """The chip of that name or number. Raises UsageError, which lists the chips, for another or one without fp16."""
    known = ", ".join(f"{soc.name} ({soc.number})" for soc in SOCS if soc.fp16)
    found = next((soc for soc in SOCS if name.upper() in (soc.name, str(soc.number))), None)
    if found is None:
        raise UsageError(f"--soc {name}: not a chip that is known here; use {known}")
    if not found.fp16:  # quantised parts need it too: what depends on the prompt alone stays float
        raise UsageError(f"--soc {name}: its HTP (v{found.arch}) has no fp16; use {known}")
    return found
