"""demo: a bundle in the browser."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesam_deploy.cli.console import note, say
from edgesam_deploy.errors import OutputError, UsageError

if TYPE_CHECKING:
    from edgesam_deploy.demo.session import Predictor


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(demo)


def demo(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, of any target that runs here.")],
    against: Annotated[
        str | None, typer.Option(help="A second bundle to compare with, or pytorch: the model it was built from.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="With --against pytorch: the bundle's checkpoint.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Other than loopback, the network can reach it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    max_upload: Annotated[int, typer.Option(help="Largest file taken, MB.", min=1)] = 20,
    max_pixels: Annotated[int, typer.Option(help="Largest picture taken, million pixels.", min=1)] = 40,
    threads: Annotated[int, typer.Option(help="Threads of the runtime; 0: its own choice.", min=0)] = 0,
    provider: Annotated[
        str, typer.Option(help="cpu; openvino for onnx and npu bundles; cuda where onnxruntime has it.")
    ] = "cpu",
) -> None:
    """Try a bundle in the browser: click points, draw a box, segment everything, compare two artifacts.

    Listens on this machine alone unless --host says otherwise. Nothing is reported anywhere, and what visitors upload
    is deleted after an hour.
    """
    from edgesam_deploy.demo.page import Page
    from edgesam_deploy.demo.session import Limits, shown_artifacts
    from edgesam_deploy.runtime import open_artifact

    first = open_artifact(bundle, provider, threads)
    predictors: dict[str, Predictor] = {_label(bundle): first}
    if against == "pytorch":
        predictors["PyTorch"] = _pytorch(bundle, checkpoint)
    elif against is not None:
        predictors[_label(Path(against), other_than=_label(bundle))] = open_artifact(against, provider, threads)
    elif checkpoint is not None:
        raise UsageError("--checkpoint belongs to --against pytorch; a bundle has its weights in it")
    limits = Limits(file_bytes=max_upload << 20, pixels=max_pixels * 1_000_000)
    weights = first.bundle.manifest["weights"]
    remark = "**Random weights: the masks mean nothing.**" if weights["source"] == "seeded" else ""
    page = Page(shown_artifacts(predictors), limits, remark)
    if not _is_loopback(host):
        note(f"note: {host} can be reached from the network; there is no password and no encryption")
    try:
        app, url = page.serve(host, port)
    except OSError as e:
        raise OutputError(f"--host {host} --port {port}: cannot listen there ({e}); choose another port") from e
    say(f"{url}  (end with Ctrl-C)")
    app.block_thread()


def _label(path: Path, other_than: str = "") -> str:
    """A bundle's folder in few words, different from the other one's."""
    name = "/".join(path.resolve().parts[-2:])
    return name if name != other_than else f"{name} (second)"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pytorch(bundle: Path, checkpoint: str | None) -> Predictor:
    from edgesam_deploy.bundle import open_bundle
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.cwsam.predictor import CwsamPredictor
    from edgesam_deploy.model.predictor import SamPredictor
    from edgesam_deploy.parity import model_of

    model = model_of(open_bundle(bundle).manifest, checkpoint)
    return CwsamPredictor(model) if isinstance(model, Cwsam) else SamPredictor(model)
