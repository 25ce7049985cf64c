"""What every target is: a frozen dataclass whose fields are the user's options, with the same few methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from numpy.typing import NDArray

from edgesam_deploy.contract import (
    DEFAULT_POINTS,
    IMAGE_ENCODER,
    MASK_DECODER,
    SEGMENTER,
    Interface,
    PartSpec,
    SegmenterInterface,
)
from edgesam_deploy.errors import UsageError
from edgesam_deploy.toolkits import require

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import HqKind, SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.joint import JointPass
    from edgesam_deploy.passes.program import Program

NPU_POINTS = 5  # what its apps send
Arrays = Mapping[str, NDArray[Any]]
Half = Literal["none", "weights", "arithmetic"]


@dataclass(frozen=True)
class Bits:
    """What the layers of a part keep of weights and activations; activations None: those stay floats."""

    weights: int
    activations: int | None


def option(default: Any, help: str) -> Any:
    """A target's option: a dataclass field that the command line shows with ``help``."""
    return field(default=default, metadata={"help": help})


class Runner(Protocol):
    """One loaded part of an artifact, ready to run on this machine; ``description`` says what runs it."""

    description: str

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name."""


@dataclass(frozen=True)
class Target(ABC):
    """Common options, and what a target must say and do.

    Class-level facts: ``name``, ``summary``, ``extension`` of its files, ``toolkits`` that must be importable to build,
    ``runtime`` that must be importable to run here, ``tools`` whose versions the manifest names beside PyTorch's,
    ``rules`` the operator table it is judged by; ``unmeasured``: why ``build`` leaves parity to ``check``, if it does;
    ``slow_to_run``: a run takes so long that ``check`` makes few of them unless asked for all; ``holds_islands``: the
    artifact can compute some nodes in fp32 and the rest in fp16; ``room``: what of a bound emulated fp16 may use where
    these are searched, since the emulation is not the artifact, and there are other pictures; ``keeps_layers``: it can
    leave layers named by the option ``keep`` out of its quantisation.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    extension: ClassVar[str]
    toolkits: ClassVar[tuple[str, ...]] = ("torch", "onnxscript")
    runtime: ClassVar[tuple[str, ...]] = ()
    tools: ClassVar[tuple[str, ...]] = ()
    unmeasured: ClassVar[str] = ""
    slow_to_run: ClassVar[bool] = False
    holds_islands: ClassVar[bool] = False
    room: ClassVar[float] = 0.8
    keeps_layers: ClassVar[bool] = False
    rules: ClassVar[str]

    points: int | Literal["dynamic"] | None = option(
        None,
        f"Prompt slots, the padding point counted, or 'dynamic' (coreml: 1 to 16). Default {DEFAULT_POINTS}; "
        f"{NPU_POINTS} with --io edgesam-npu, else dynamic with --io.",
    )
    batch: int | Literal["dynamic"] = option(1, "Prompts per call on one image, or 'dynamic'.")
    mask_input: bool = option(False, "Take the logits of an earlier call as an extra prompt.")
    scores: Literal["iou", "stability"] = option("iou", "Predicted IoU, or the stability score computed in the graph.")
    io: Literal["contract", "edgesam", "edgesam-dyt", "edgesam-npu", "sam"] = option(
        "contract",
        "Inputs and outputs: this project's contract, or what apps for edgesam, edgesam-dyt, edgesam-npu or sam speak.",
    )
    return_single_mask: bool = option(False, "With --io sam: one mask, chosen as the official decoder does.")
    multimask: bool = option(False, "HQ-SAM: sharpen the best of SAM's masks 1 to 3 instead of mask 0.")
    hq_token_only: bool = option(False, "HQ-SAM: the HQ mask alone, not added to SAM's.")
    argmax: bool = option(False, "Semantic models: give the class map instead of logits.")
    embed_preprocess: bool = option(
        False, "Take pixels of 0 to 255; normalisation and padding happen inside the encoder."
    )

    def __post_init__(self) -> None:
        # raises UsageError for options that exclude each other; which of them fit the model is seen with the model
        late = self.multimask or self.hq_token_only
        self._promptable(1024, 256, "late" if late else "none", ((1, 1, 1),))

    def interface(self, config: SamConfig | CwsamConfig) -> Interface | SegmenterInterface:
        """The I/O contract that these options ask for. Raises UsageError for those that the model cannot have."""
        from edgesam_deploy.model.configs import SamConfig, intermediate_shapes

        if not isinstance(config, SamConfig):
            return self._semantic(config)
        if self.argmax:
            raise UsageError("--argmax belongs to semantic models (cwsam*)")
        if config.mask_decoder is None:
            self._refuse_prompts("an image encoder alone takes no prompts")
        hq = "none" if config.mask_decoder is None else config.mask_decoder.hq
        shapes = () if hq == "none" else intermediate_shapes(config)
        return self._promptable(config.image_size, config.embed_dim, hq, shapes)

    def _semantic(self, config: CwsamConfig) -> SegmenterInterface:
        self._refuse_prompts("a semantic model takes no prompts")
        return SegmenterInterface(config.image_size, config.classes, self.argmax, self.embed_preprocess)

    def _refuse_prompts(self, why: str) -> None:
        common = {f.name for f in fields(Target)} - {"argmax", "embed_preprocess"}
        for f in fields(self):
            if f.name in common and getattr(self, f.name) != f.default:
                raise UsageError(f"--{f.name.replace('_', '-')}: {why}; leave it out")

    def _promptable(
        self, image_size: int, embed_dim: int, hq: HqKind, intermediate: tuple[tuple[int, int, int], ...]
    ) -> Interface:
        static = {"contract": DEFAULT_POINTS, "edgesam-npu": NPU_POINTS}
        points: int | Literal["dynamic"] = static.get(self.io, "dynamic")
        if self.points is not None:
            points = self.points
        return Interface(
            image_size=image_size,
            points=points,
            batch=self.batch,
            mask_input=self.mask_input or self.io == "sam",
            scores=self.scores,
            io=self.io,
            embed_preprocess=self.embed_preprocess,
            embed_dim=embed_dim,
            return_single_mask=self.return_single_mask,
            hq=hq,
            intermediate=intermediate,
            multimask=self.multimask,
            hq_token_only=self.hq_token_only,
        )

    def options(self) -> dict[str, Any]:
        """The options by name, for the manifest."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def half(self) -> Half:
        """What these options round to fp16, which the lint looks at before anything is emitted."""
        return "none"

    @property
    def instead_of_half(self) -> str:
        """The options that help where fp16 rounds too far."""
        islands = (
            "--auto-mixed, which keeps in fp32 what needs it, or " if self.holds_islands and not self.mixes else ""
        )
        return f"{islands}--precision fp32"

    @property
    def mixes(self) -> bool:
        """Whether these options ask for fp32 islands to be found."""
        return bool(getattr(self, "auto_mixed", False))

    def islands(self, program: Program) -> frozenset[str]:
        """The nodes of an aten program, after this target's passes, that it computes in fp32 although it has fp16."""
        return program.islands

    def quantised(self, part: str) -> Bits | None:
        """The bits that these options leave to the layers of a part; None where they stay floats."""
        return None

    @property
    def quantises(self) -> bool:
        """Whether they quantise anything."""
        return any(self.quantised(part) is not None for part in (IMAGE_ENCODER, MASK_DECODER, SEGMENTER))

    def rehearsal(self) -> Target:
        """What a search builds and executes in this target's place, many times: itself, or its portable form where
        the real one takes minutes.
        """
        return self

    @classmethod
    def option_fields(cls) -> list[Field[Any]]:
        """The fields that the command line offers."""
        return [f for f in fields(cls) if "help" in f.metadata and f.default is not MISSING]

    def joint_pipeline(self, config: SamConfig | CwsamConfig) -> tuple[JointPass, ...]:
        """Passes that move work between encoder and decoder, before either's own; none by default."""
        return ()

    @abstractmethod
    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        """The passes, in order, with the reason for each position beside it."""

    def require_toolkits(self) -> None:
        """Raise MissingToolkit unless this machine can build."""
        for toolkit in self.toolkits:
            require(toolkit, f"building for {self.name}")

    def stored(self, part: PartSpec) -> PartSpec:
        """The part as its file has it, where that is other than the contract: another layout of an input."""
        return part

    def file(self, part: PartSpec) -> str:
        """The name of a part's file in the bundle; the same one for several parts where they share it."""
        return f"{part.file}.{self.extension}"

    def emit_parts(
        self,
        programs: Sequence[Program],
        interface: Interface | SegmenterInterface,
        files: Mapping[str, Path],
        metadata: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Write every part's artifact, ``files`` and ``metadata`` by part. Whatever else lands beside them belongs to
        the bundle and is hashed, so it must not vary from build to build.
        """
        for program in programs:
            self.emit(program, interface, files[program.name], metadata[program.name])

    @abstractmethod
    def emit(
        self, program: Program, interface: Interface | SegmenterInterface, path: Path, metadata: Mapping[str, str]
    ) -> None:
        """Write the program's artifact to ``path``."""

    @property
    def rule_table(self) -> str:
        """The operator table that these options' files are judged by."""
        return self.rules

    @property
    def measured_on(self) -> str:
        """The provider that ``build`` measures parity with."""
        return "cpu"

    def judged(self, path: Path) -> Path:
        """The file that the operator report reads for the artifact in ``path``: another where that one is opaque."""
        return path

    def integrate(self, folder: Path, manifest: Mapping[str, Any]) -> None:  # noqa: B027
        """Write the files that help an app use the bundle, into its ``folder``; none by default."""

    @abstractmethod
    def load(self, path: Path, *, part: str, provider: str, threads: int, lean: bool = False) -> Runner:
        """A part of the artifact ready to run here; ``lean`` where memory counts more than the milliseconds of
        allocating it. Raises MissingToolkit where its runtime is not installed.
        """
