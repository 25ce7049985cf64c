"""The protobuf classes of Core ML's file format, out of coremltools' folder but without importing coremltools.

Importing the package costs seconds, prints, and brings PyTorch along; the classes alone need protobuf and 0.1 s.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from edgesam_deploy.errors import MissingToolkit
from edgesam_deploy.toolkits import require

PURPOSE = "reading a .mlpackage"
_ALIAS = "edgesam_deploy_coreml_proto"  # not coremltools.proto: a later import of coremltools must find its own


@cache
def schema(name: str) -> ModuleType:
    """The generated module ``name``, such as Model_pb2. Raises MissingToolkit where coremltools is not installed."""
    found = find_spec("coremltools")
    places = found.submodule_search_locations if found else None
    folder = Path(places[0]) / "proto" if places else None
    if folder is None or not (folder / f"{name}.py").is_file():
        return require(f"coremltools.proto.{name}", PURPOSE)  # its message says what to install
    if _ALIAS not in sys.modules:
        _import_folder(folder)
    try:
        return import_module(f"{_ALIAS}.{name}")
    except ImportError as e:
        raise MissingToolkit(f"{PURPOSE} needs protobuf: pip install 'edgesam-deploy[coreml]' ({e})") from e


def _import_folder(folder: Path) -> None:
    spec = spec_from_file_location(_ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[_ALIAS] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as e:
        del sys.modules[_ALIAS]
        raise MissingToolkit(f"{PURPOSE} needs protobuf: pip install 'edgesam-deploy[coreml]' ({e})") from e
