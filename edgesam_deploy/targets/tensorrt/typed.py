"""Typed ONNX on a CPU: what its types cost, without the GPU they are for."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from edgesam_deploy.errors import BundleError
from edgesam_deploy.passes.rounding import has_halves, rounded
from edgesam_deploy.targets.onnx import OnnxRunner

NOT_BUILT = "engine not built"


class TypedOnnxRunner(OnnxRunner):
    """One typed .onnx file in ONNX Runtime, each 16-bit value rounded as the file says: see ``passes.rounding``."""

    def __init__(self, path: Path, provider: str = "cpu", threads: int = 0, lean: bool = False) -> None:
        try:
            model = ir.load(path)
        except Exception as e:  # protobuf's errors and the file system's
            raise BundleError(f"{path} cannot be read ({e}); edgesam-deploy verify tells if it is damaged") from e
        how = ""
        if has_halves(model):
            how = ", every 16-bit value rounded (emulation)"
            with tempfile.TemporaryDirectory(
                prefix="rounded_"
            ) as folder:  # a ViT-H in fp32 is more than protobuf holds
                widened = Path(folder) / path.name
                ir.save(rounded(model), widened, external_data=f"{path.name}.data")
                super().__init__(widened, provider, threads, lean)
        else:
            super().__init__(path, provider, threads, lean)
        self.description = f"typed ONNX in {self.description}{how}; {NOT_BUILT}"
