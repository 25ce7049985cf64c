"""What travels with the weights: their licence and the bill of materials."""

from __future__ import annotations

import json

from edgesam_deploy.bundle import sha256_of
from edgesam_deploy.model.configs import MODELS
from edgesam_deploy.notices import NOTICE, SBOM, TERMS, UNKNOWN, bundle_sbom, weights_notice

CHECKPOINT = {"source": "checkpoint", "seed": None, "checkpoint": "edge_sam_3x.pth", "sha256": "ab" * 32, "notes": []}


def test_every_model_has_terms_or_says_that_it_has_none():
    licences = {config.licence for config in MODELS.values()}
    assert licences - set(TERMS) == {"none given: all rights reserved by its authors"}


def test_a_bundle_says_what_its_weights_may_be_used_for(family):
    for name, words in (("edge_sam_dyt", "non-commercial purposes"), ("vit_b", "apache.org"), ("cwsam", UNKNOWN)):
        text = (family(name)[1].path / NOTICE).read_text()
        assert words in text
        assert "random numbers (seed 0)" in text


def test_a_checkpoint_is_named_with_its_hash(bundles):
    notice = weights_notice({**bundles().manifest, "weights": CHECKPOINT})
    assert "`edge_sam_3x.pth`" in notice
    assert "ab" * 32 in notice
    model = bundle_sbom({**bundles().manifest, "weights": CHECKPOINT})["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]


def test_the_bill_of_materials_lists_every_file_with_its_hash(bundles):
    bundle = bundles()
    document = json.loads((bundle.path / SBOM).read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    listed = {c["name"]: c["hashes"][0]["content"] for c in document["components"]}
    assert listed.keys() == bundle.manifest["files"].keys() - {SBOM}
    assert all(sha256_of(bundle.path / name) == digest for name, digest in listed.items())
    subject = document["metadata"]["component"]
    assert subject["type"] == "machine-learning-model"
    assert subject["licenses"] == [{"license": {"name": bundle.manifest["license"]}}]
    tools = {tool["name"] for tool in document["metadata"]["tools"]["components"]}
    assert {"edgesam-deploy", "torch", "onnx"} <= tools
    references = [c["bom-ref"] for c in (subject, *document["components"])]
    assert len(set(references)) == len(references)
    assert document["dependencies"] == [{"ref": "model", "dependsOn": references[1:]}]
