"""Lines that hold the architecture: who may import whom, what stays light, what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgesam_deploy

PACKAGE = Path(edgesam_deploy.__file__).parent
# room -> rooms it may import from, beside the ones that everybody may
EVERYBODY = {"errors", "toolkits", "onnx_file", "plugins"}
ALLOWED = {
    "errors": set(),
    "onnx_file": set(),
    "toolkits": set(),
    "plugins": set(),
    "model": set(),  # model knows nobody
    "contract": {"model"},  # label codes and pixel statistics, NumPy only
    "passes": {"contract"},  # neither models nor targets
    "cost": set(),
    "optimizer": {"contract", "passes", "targets"},
    "graphsurgeon": {"optimizer", "passes"},
    "memory": {"model"},
    "capture": {"contract", "cost", "model", "passes"},
    "targets": {"contract", "passes", "model", "precision"},  # model for its configuration's type only
    "bundle": set(),
    "runtime": {"bundle", "contract", "cost", "model", "targets"},
    "ops": {"targets", "bundle", "capture", "model", "passes"},  # the last three for a model that is not built
    "parity": {"bundle", "contract", "model", "runtime", "targets"},
    "overlay": {"model"},
    "model_card": set(),
    "report": {"bench", "bundle", "model", "ops", "parity", "runtime", "targets"},
    "demo": {"model", "overlay"},
    "detectors": set(),
    "many": {"model"},
    "explain": set(),
    "notices": {"bundle"},
    "doctor": {"model", "targets"},
    "bench": {"bundle", "contract", "devices", "model", "parity", "runtime", "targets"},
    "builder": {
        "bundle",
        "capture",
        "cost",
        "contract",
        "memory",
        "model",
        "model_card",
        "notices",
        "ops",
        "parity",
        "passes",
        "precision",
        "runtime",
        "targets",
    },
    "photographs": set(),
    "precision": {"contract", "model", "passes"},  # what targets read of it; and what reads targets and artifacts:
    "precision/composed": {"bundle", "contract", "passes", "runtime", "targets"},
    "precision/analyse": {"capture", "contract", "cost", "model", "parity", "passes", "runtime", "targets"},
    "precision/shown": {"model", "parity", "runtime"},
    "precision/mixed": {"capture", "contract", "model", "parity", "passes", "runtime", "targets"},
    "precision/sensitivity": {"contract", "model", "parity", "passes", "runtime", "targets"},
    "precision/quantisation": {"bundle", "parity", "passes", "targets"},
    "quantizer": {"builder", "bundle", "capture", "contract", "cost", "model", "parity", "precision", "targets"},
    "precision/lint": {"capture", "contract", "cost", "model", "parity", "passes", "runtime", "targets"},
    "distill": {"model", "runtime", "precision"},
    "devices": set(),
}
FREE = {"__init__", "__main__", "cli"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_one_way(path):
    here = room(path)
    if here in FREE:
        return
    for module in imports(path):
        name, _, rest = module.partition(".")
        if name == "edgesam_deploy" and rest:
            there = rest.split(".")[0]
            file = path.relative_to(PACKAGE).as_posix().removesuffix(".py")
            allowed = ALLOWED.get(file, ALLOWED[here])
            assert there == here or there in EVERYBODY | allowed, f"{file} imports {there}"


def test_targets_do_not_read_what_reads_targets():
    above = {f"edgesam_deploy.{file.replace('/', '.')}" for file in ALLOWED if file.startswith("precision/")}
    for path in sorted((PACKAGE / "targets").rglob("*.py")):
        assert not above & set(imports(path)), path


LIGHT = [
    "edgesam_deploy.cli", "edgesam_deploy.cost", "edgesam_deploy.runtime", "edgesam_deploy.model.mask_generator",
    "edgesam_deploy.model.semantic", "edgesam_deploy.ops", "edgesam_deploy.bench.remote",
    "edgesam_deploy.bench.formats",
    "edgesam_deploy.explain", "edgesam_deploy.demo.session", "edgesam_deploy.many", "edgesam_deploy.detectors",
]  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_these_need_no_pytorch(module):
    code = f"import sys; sys.modules['torch'] = None; import {module}"  # None makes any import of it fail
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bundle_runs_without_pytorch(bundles):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, edgesam_deploy as ed\n"
        "p = ed.open(sys.argv[1]); p.set_image(np.zeros((30, 40, 3), np.uint8))\n"
        "print(p.predict([[3, 4]], [1])[0].shape); ed.verify(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundles().path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(3, 30, 40)"


def test_public_names_are_frozen():
    assert edgesam_deploy.__all__ == [
        "Bundle", "BundlePredictor", "BundleSegmenter", "Cwsam", "CwsamPredictor", "EdgeSamDeployError", "Sam",
        "SamAutomaticMaskGenerator", "SamPredictor", "SemanticMetrics", "build", "check", "load", "open", "quantize",
        "ranges", "read_image", "sam_model_registry", "verify",
    ]  # fmt: skip
    for name in edgesam_deploy.__all__:
        assert callable(getattr(edgesam_deploy, name)) or name == "sam_model_registry"


def test_a_build_opens_no_connection(tmp_path):
    """Nothing is downloaded and nothing reported: a build works where any socket is an error."""
    code = (
        "import sys, socket; sys.path.insert(0, sys.argv[1])\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "from conftest import TINY\n"
        "import edgesam_deploy as ed\n"
        "from edgesam_deploy.parity import seeded_scene\n"
        "ed.build(ed.load('edge_sam', config=TINY), 'onnx', sys.argv[2], proof='off', pictures={'s': seeded_scene(3)})"
    )
    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code, tests, str(tmp_path / "out")], check=True)
