"""What a bundle says of the licence of its weights, and its bill of materials (CycloneDX 1.6).

The same manifest gives the same bytes: no date, and a serial number made from the content.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from edgesam_deploy.bundle import dump_json

NOTICE, SBOM = "WEIGHTS_LICENSE.md", "sbom.cdx.json"
# what a licence asks of those who pass the artifact on, by the name that models carry (model.configs)
TERMS: Mapping[str, str] = {
    "NTU S-Lab License 1.0 (non-commercial)": (
        "Redistribution and use, with or without modification, are for **non-commercial purposes** only. Copies keep "
        "the copyright notice, the conditions and the disclaimer of the licence; the names of its holders are not used "
        "to endorse products. For commercial use ask the authors of the weights.\n\n"
        "- text of the licence: <https://github.com/chongzhou96/EdgeSAM/blob/master/LICENSE>\n"
        "- weights by: S-Lab, Nanyang Technological University, authors of EdgeSAM and of works derived from it\n"
    ),
    "Apache-2.0": (
        "Copies keep the licence and the notices of attribution, and say what was changed. This artifact is a changed "
        "form: it was traced, rewritten and stored in another format.\n\n"
        "- text of the licence: <https://www.apache.org/licenses/LICENSE-2.0>\n"
    ),
}
UNKNOWN = (
    "No licence is known that lets you pass these weights on. Unless you trained them yourself or their authors "
    "allowed it, keep this artifact to yourself.\n"
)
SPDX = {"Apache-2.0": {"id": "Apache-2.0"}}


def weights_notice(manifest: Mapping[str, Any]) -> str:
    """Markdown: which licence the weights of a bundle have and what it asks of whoever passes them on."""
    licence, weights = manifest["license"], manifest["weights"]
    seeded = weights["source"] == "seeded"
    origin = (
        f"They are random numbers (seed {weights['seed']}), which nobody holds rights in; what follows applies to "
        "bundles with a published checkpoint of this model."
        if seeded
        else f"They come from `{weights['checkpoint']}`, sha256 `{weights['sha256']}`. What follows is the licence "
        "that checkpoints of this model are published under; weights that you trained yourself have the one you give "
        "them, within what the licence of your starting point allows."
    )
    return (
        f"# Licence of the weights: {licence}\n\n"
        "The software that wrote this bundle is under Apache-2.0. The weights inside the artifact have a licence of "
        f"their own, which travels with it.\n\n{origin}\n\n{TERMS.get(licence, UNKNOWN)}"
    )


def bundle_sbom(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """CycloneDX of a finished manifest: the model with its licence and origin, every hashed file, the tools used."""
    name, weights = manifest["model"]["name"], manifest["weights"]
    version = manifest["edgesam_deploy"]
    licence = SPDX.get(manifest["license"], {"name": manifest["license"]})
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": f"{name} for {manifest['target']}",
        "version": str(weights.get("sha256") or f"seed {weights['seed']}"),
        "licenses": [{"license": licence}],
        "properties": [
            {"name": f"edgesam_deploy:{key}", "value": str(value)} for key, value in sorted(weights.items())
        ],
    }
    if weights.get("sha256"):
        model["hashes"] = [{"alg": "SHA-256", "content": weights["sha256"]}]
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{path}",
            "name": path,
            "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
        }
        for path, entry in sorted(manifest["files"].items())
    ]
    tools = [pypi("edgesam-deploy", version), *(pypi(n, v) for n, v in sorted(manifest["tools"].items()) if v)]
    return sbom(model, files, tools)


def pypi(name: str, version: str) -> dict[str, Any]:
    """The component of a Python distribution."""
    reference = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    return {"type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference}


def sbom(subject: dict[str, Any], components: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """A CycloneDX 1.6 document about ``subject``."""
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject, **({"tools": {"components": tools}} if tools else {})},
        "components": components,
        "dependencies": [{"ref": subject["bom-ref"], "dependsOn": [c["bom-ref"] for c in components]}],
    }
    digest = hashlib.sha256(dump_json(document).encode()).digest()
    return {"serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}", **document}
