"""run on a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgesam_deploy.bundle import MANIFEST, open_bundle, sha256_of
from edgesam_deploy.cli.console import print_json, progress_bar, readable_name, say
from edgesam_deploy.cli.predict import mask_count, note_weights
from edgesam_deploy.detectors import make_detector, proposed
from edgesam_deploy.errors import DataError, OutputError, PromptError, UsageError
from edgesam_deploy.many import PROGRESS, RESULTS, Job, Ledger, Prompt, jobs_from, jobs_with, pictures, segment
from edgesam_deploy.model.transforms import read_image
from edgesam_deploy.runtime import is_semantic, open_predictor


@dataclass(frozen=True)
class Asked:
    """What the command line asks for: a folder or a picture, and where its prompts come from."""

    bundle: Path
    image: Path
    out: Path
    points: list[list[float]]
    box: list[float] | None
    masks: int | None
    prompts: Path | None
    boxes_from: str | None


def run_many(asked: Asked, *, provider: str, threads: int, json: bool) -> None:
    """results.json into the folder ``out``. Raises DataError at the end where pictures failed; what the predictor,
    the prompts' file and the ledger raise.
    """
    if is_semantic(asked.bundle):
        raise UsageError(f"{asked.bundle} holds a semantic model: run it on one picture at a time")
    given = [asked.prompts is not None, asked.boxes_from is not None, bool(asked.points or asked.box)]
    if sum(given) != 1:
        raise PromptError("give prompts in one way: --point and --box, --prompts FILE, or --boxes-from DETECTOR")
    if (asked.out / MANIFEST).exists():
        raise OutputError(f"--out {asked.out}: is a bundle, which would no longer verify; choose another folder")
    detector = make_detector(asked.boxes_from) if asked.boxes_from else None
    jobs = _jobs(asked)
    predictor = open_predictor(asked.bundle, provider, threads)
    count = mask_count(predictor, asked.masks)
    note_weights(predictor.bundle)
    ledger = Ledger(asked.out, _identity(asked, count))
    with progress_bar(len(jobs), lines=20) as progress:
        propose = None if detector is None else partial(proposed, detector)

        def step(name: str) -> None:
            progress(readable_name(Path(name)))

        tally = segment(predictor, jobs, ledger, mask_count=count, propose=propose, progress=step)
    if json:
        print_json({**tally, "results": str(asked.out / RESULTS)})
    else:
        found = f", {tally['resumed']} were done already" if tally["resumed"] else ""
        say(f"{tally['pictures']} pictures, {tally['prompts']} prompts{found}\n{asked.out / RESULTS}")
    if tally["failed"]:
        what = "1 picture" if tally["failed"] == 1 else f"{tally['failed']} pictures"
        raise DataError(f"{what} failed; why stands in {asked.out / PROGRESS}, the rest is done")


def _jobs(asked: Asked) -> list[Job]:
    if asked.prompts is not None:
        if not asked.image.is_dir():
            raise UsageError(f"{asked.image}: --prompts wants the folder that its pictures are in")
        return jobs_from(asked.prompts, asked.image)
    if asked.image.is_dir():
        paths = pictures(asked.image)
    else:
        paths = [asked.image]
        read_image(asked.image)  # of many, one that cannot be read is passed over; of one, nothing is begun
    return jobs_with(paths, None if asked.boxes_from else (Prompt(asked.points, asked.box),))


def _identity(asked: Asked, count: int) -> dict[str, object]:
    """What a run that goes on must have in common with the one that began."""
    return {
        "pictures": str(asked.image.resolve()),
        "bundle": open_bundle(asked.bundle).manifest.get("manifest_sha256"),
        "prompts": None if asked.prompts is None else sha256_of(asked.prompts),
        "points": asked.points,
        "box": asked.box,
        "boxes_from": asked.boxes_from,
        "masks": count,
    }
