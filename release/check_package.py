"""Builds the wheel and the sdist, installs the wheel into environments of its own, and uses it there.

    python -m release.check_package            the wheel without extras: everything that works without PyTorch
    python -m release.check_package --sdist    the same, installed from the sdist
    python -m release.check_package torch qnn  an environment for each named extra: it resolves, and its modules import
    python -m release.check_package every      each extra alone, and all together: gigabytes and many minutes

Needs a network or an index for what is not installed; pip's own settings apply. Nothing of this folder is on the path
of what is checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# extras that constraints.txt does not fit
OWN_VERSIONS = {"demo": ["constraints-demo.txt"], "all": ["constraints-all.txt"], "tensorrt": []}
MODULES = {
    "torch": ["torch", "onnxscript", "safetensors", "huggingface_hub"],
    "coreml": ["coremltools"],
    "tflite": ["litert_torch", "ai_edge_litert.interpreter", "ai_edge_quantizer"],
    "openvino": ["openvino"],
    "qnn": ["onnxruntime_qnn"],
    "tensorrt": ["tensorrt"],
    "train": ["webdataset", "pycocotools.mask", "yaml", "tensorboard"],
    "demo": ["gradio", "edgesam_deploy.demo.page"],
    "docs": ["mkdocs", "mkdocstrings", "material"],
    "notebook": ["nbclient", "nbformat", "ipykernel"],
    "peers": ["openvino", "ncnn", "pnnx"],
    "dev": ["pytest", "mypy", "hypothesis"],
    "all": ["coremltools", "onnxruntime_qnn", "openvino", "gradio", "webdataset", "mkdocs", "nbclient", "pytest"],
}


def run(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    """Run a command away from this folder; its output. Raises SystemExit that shows it where it ends otherwise."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != expect:
        shown = " ".join(str(c) for c in command)
        raise SystemExit(f"{shown}\nended with {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def built(place: Path) -> dict[str, Path]:
    """The wheel and the sdist of this tree, by kind."""
    python = environment(place / "build")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", "hatchling", cwd=place)
    run(python, "-m", "hatchling", "build", "-d", place / "dist", cwd=ROOT)
    files = {"wheel": "*.whl", "sdist": "*.tar.gz"}
    return {kind: next((place / "dist").glob(pattern)) for kind, pattern in files.items()}


def environment(folder: Path) -> Path:
    """A new virtual environment; its interpreter."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def installed(place: Path, package: Path, extra: str = "") -> Path:
    """An environment with the package and one extra; its interpreter."""
    python = environment(place / f"with-{extra or 'nothing'}")
    wanted = f"{package}[{extra}]" if extra else str(package)
    files = OWN_VERSIONS.get(extra, ["constraints.txt"])
    constraints = [word for file in files for word in ("--constraint", str(ROOT / file))]
    run(python, "-m", "pip", "install", "--quiet", *constraints, wanted, cwd=place)
    return python


def check_contents(wheel: Path) -> None:
    """What has to travel in the wheel beside the code."""
    names = zipfile.ZipFile(wheel).namelist()
    for ending in (
        "/licenses/LICENSE",
        "/sboms/sbom.cdx.json",
        "photographs/LICENSES.md",
        "py.typed",
        "WEIGHTS.md",
        "demo/drag.js",
        "model/shipped/edge_sam_demo.safetensors",
        "model/shipped/edge_sam_demo.md",
    ):
        if not any(name.endswith(ending) for name in names):
            raise SystemExit(f"{wheel.name} lacks {ending}")
    strangers = {name.split("/")[0] for name in names if not name.startswith("edgesam_deploy")}
    if strangers:
        raise SystemExit(f"{wheel.name} would install {', '.join(sorted(strangers))}")


def check_base(python: Path, place: Path, bundle: Path | None) -> None:
    """What works without PyTorch, in an environment without it."""
    command = python.with_name("edgesam-deploy")
    run(python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)", cwd=place)
    assert "Usage" in run(command, "--help", cwd=place)
    assert "edge_sam" in json.loads(run(command, "models", "--json", cwd=place))
    assert "torch" in json.loads(run(command, "targets", "--json", cwd=place))["onnx"]["missing"]
    found = json.loads(run(command, "doctor", "--json", cwd=place))
    usable = {row["package"]: row["usable"] for row in found["packages"]}
    assert usable["onnxruntime"] is True, found
    assert usable["torch"] is None, found
    write = "from onnx import parser, save; save(parser.parse_model(open('m.txt').read()), 'm.onnx')"
    text = '<ir_version: 10, opset_import: ["": 17]> m (float[1,4] x) => (float[1,4] y) { y = Erf (x) }'
    (place / "m.txt").write_text(text)
    run(python, "-c", write, cwd=place)
    assert "Erf" in run(command, "ops", "m.onnx", "--target", "all", cwd=place)
    run(command, "explain-file", "m.onnx", cwd=place)
    run(command, "build", "edge_sam", cwd=place, expect=3)
    run(command, "verify", place / "none", cwd=place, expect=1)
    if bundle is not None:
        picture = "import edgesam_deploy, pathlib as p; print(p.Path(edgesam_deploy.__file__).parent / 'photographs')"
        coffee = Path(run(python, "-c", picture, cwd=place).strip()) / "coffee.jpg"
        run(command, "verify", bundle, cwd=place)
        run(command, "ops", bundle, cwd=place)
        run(command, "run", bundle, coffee, "--point", "300,190", "--out", place / "masks", cwd=place)
        assert (place / "masks" / "overlay.png").is_file()


def check_extra(python: Path, place: Path, extra: str) -> None:
    """The modules of an extra import, and doctor agrees."""
    for module in MODULES[extra]:
        run(python, "-c", f"import {module}", cwd=place)
    found = json.loads(run(python.with_name("edgesam-deploy"), "doctor", "--json", cwd=place))
    faults = [row["fault"] for row in found["packages"] if row["fault"]]
    if faults:
        raise SystemExit(f"with {extra}: {faults}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="extras, each in an environment of its own; every: all of them")
    parser.add_argument("--sdist", action="store_true", help="install from the sdist")
    parser.add_argument("--bundle", type=Path, help="a bundle to verify and run without PyTorch")
    asked = parser.parse_args()
    known = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    extras = known if asked.extras == ["every"] else asked.extras
    bundle = asked.bundle.resolve() if asked.bundle else None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = built(place)
        check_contents(files["wheel"])
        package = files["sdist" if asked.sdist else "wheel"]
        for extra in extras or [""]:
            python = installed(place, package, extra)
            check_extra(python, place, extra) if extra else check_base(python, place, bundle)
            print(f"{package.name}: works {f'with {extra}' if extra else 'without extras'}", file=sys.stderr)


if __name__ == "__main__":
    main()
