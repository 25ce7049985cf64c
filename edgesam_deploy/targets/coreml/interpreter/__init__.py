"""Runs a Core ML .mlpackage on any machine, with NumPy: parity is measured without a Mac.

It checks what the converter, the passes, serialisation, compression and the choice of types made of a model. Apple's
own runtime and the numerics of its devices it cannot check: "emulated", not "device". coremltools is needed for the
protobuf classes of the file format only.
"""

from edgesam_deploy.targets.coreml.interpreter.model import MODES, Mode, Model, open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.types import TensorType

__all__ = ["MODES", "Mode", "Model", "TensorType", "open_mlpackage"]
