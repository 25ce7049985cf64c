"""What nobody looked at: said of a bundle, so that silence is never taken for a pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgesam_deploy.bundle import Bundle


def not_verified(bundle: Bundle) -> list[str]:
    """A sentence for each thing that a careful reader might take for granted and that was not measured."""
    return [*_weights(bundle), *_parity(bundle), *_passes(bundle), *_latency(bundle)]


def _weights(bundle: Bundle) -> Iterator[str]:
    if bundle.manifest["weights"]["source"] == "seeded":
        yield "The weights are random: what reduced precision costs trained weights is not known from this bundle."


def _parity(bundle: Bundle) -> Iterator[str]:
    parity = bundle.read_json("parity.json")
    if parity is None:
        yield "Parity with PyTorch was not measured."
        return
    if parity["verdict"] != "pass":
        yield f"Parity with PyTorch: {parity['verdict']} ({'; '.join(parity['reasons'][:2])})."
    for case in parity.get("skipped", ()):
        yield f"Prompt left out of parity: {case}."
    executed = str(parity["executed"])
    if parity["rows"] and ("emulat" in executed or "rounded" in executed):
        yield f"Parity was measured on a stand-in for the device ({executed}), not on the device."


def _passes(bundle: Bundle) -> Iterator[str]:
    worked = [step for part in bundle.manifest["parts"].values() for step in part["passes"] if step["sites"]]
    unproved = sorted({step["name"] for step in worked if step["proof"] == "not proved"})
    if unproved:
        yield f"Passes whose effect was not proved: {', '.join(unproved)}."
    if any("twin" in step["proof"] for step in worked):
        yield "Passes were proved on a twin of fewer blocks with the same weights, not on the whole part."


def _latency(bundle: Bundle) -> Iterator[str]:
    found: Any = bundle.read_json("bench.json")
    if not found or "bundles" not in found:
        yield "Latency was not measured."
        return
    executed = str(found["bundles"][0].get("executed"))
    if "emulat" in executed or "interpreter" in executed.lower():
        yield f"Latency is that of a stand-in for the device ({executed}): it says nothing about the device."
    elif found["device"] == "local":
        yield "Latency was measured on the machine that ran the benchmark, on no other device."
    if not found["complete"]:
        yield f"The benchmark did not finish: {found.get('incomplete_because')}."
    for reason in found["bundles"][0]["skipped"]:
        yield f"Left out of the benchmark: {reason}."
