"""Which of the toolkits with the same interface is here: the converter's names, and the runtime's, old and new.

A module that imports may still not work (tflite-runtime 2.14 beside NumPy 2 imports and cannot construct an
interpreter; ai-edge-torch 0.7.2 is an empty alias), so a runtime counts once it has run a model of one operator, and
a converter once it has ``convert``.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from edgesam_deploy.errors import MissingToolkit
from edgesam_deploy.toolkits import installed_version

CONVERTERS = ("litert_torch", "ai_edge_torch")
# module with Interpreter, package
RUNTIMES = (
    ("ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite-runtime"),
    ("tensorflow.lite.python.interpreter", "tensorflow"),
)
INSTALL = "pip install 'edgesam-deploy[tflite]'"
# y = x + x for one float; tests/targets/tflite/test_toolkits.py makes the same bytes from the schema
PROBE = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAA4AAAAAMAAAABAAAABAAAACj///8BAAAAEAAAAAwAFAAQAAwACAAEAAwA"
    "AAAQAAAAUAAAAFQAAABYAAAAAQAAABQAAAAAAA4AFAAAABAADAALAAQADgAAABAAAAAAAAALDAAAABAAAACA////AQAAAAEAAAACAAAA"
    "AAAAAAAAAAABAAAAAQAAAAEAAAAAAAAAAgAAADAAAAAEAAAA5P///wgAAAAMAAAAAQAAAHkAAAABAAAAAQAAAAwADAAIAAAAAAAEAAwA"
    "AAAIAAAADAAAAAEAAAB4AAAAAQAAAAEAAAABAAAACAAAAAQABAAEAAAA"
)


def resolve_converter(names: Sequence[str] = CONVERTERS) -> Any:
    """The first converter that has ``convert``. Raises MissingToolkit saying what is wrong with each."""
    problems = []
    for name in names:
        try:
            module = import_module(name)
        except Exception as e:  # a broken native library raises whatever it likes
            problems.append(f"{name}: {_first_line(e)}")
            continue
        if hasattr(module, "convert"):
            return module
        problems.append(f"{name}: it has no convert (an alias without content)")
    raise MissingToolkit(f"building for tflite needs a converter: {INSTALL} ({'; '.join(problems)})")


def resolve_runtime(candidates: Sequence[tuple[str, str]] = RUNTIMES) -> tuple[Any, str]:
    """The first runtime that runs a model of one operator: its Interpreter class, and its name with version.

    Raises MissingToolkit saying what is wrong with each.
    """
    problems = []
    for name, package in candidates:
        try:
            interpreter = import_module(name).Interpreter
            _try_out(interpreter)
        except Exception as e:  # a broken native library raises whatever it likes
            problems.append(f"{package}: {_first_line(e)}")
            continue
        return interpreter, f"{package} {installed_version(package) or 'of unknown version'}"
    raise MissingToolkit(f"running a TFLite file needs a runtime: {INSTALL} ({'; '.join(problems)})")


@cache
def runtime() -> tuple[Any, str]:
    """``resolve_runtime``, once per process."""
    return resolve_runtime()


def _try_out(interpreter: Any) -> None:
    running = interpreter(model_content=PROBE)
    running.allocate_tensors()
    running.set_tensor(running.get_input_details()[0]["index"], np.array([3], np.float32))
    running.invoke()
    result = running.get_tensor(running.get_output_details()[0]["index"])
    if result.tolist() != [6.0]:
        raise RuntimeError(f"it computes 3 + 3 = {result.tolist()}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
