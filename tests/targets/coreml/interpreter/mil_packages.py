"""Programs and packages made with coremltools for the interpreter's tests."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

logging.getLogger("coremltools").setLevel(logging.ERROR)
OPSETS = {"iOS16": ct.target.iOS16, "iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}


def inferred(kind, opset="iOS17", **arguments):
    """What coremltools' own value_inference gives for one operation on constants: an array, or a list of them."""
    found = []

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=OPSETS[opset])
    def program(unused):
        results = getattr(mb, kind)(**arguments)
        found.extend(results if isinstance(results, (tuple, list)) else [results])
        return mb.identity(x=unused)

    assert all(var.val is not None for var in found), f"{kind} has no value inference for these arguments"
    values = [np.asarray(var.val) for var in found]
    return values[0] if len(values) == 1 else values


def built(program, path, opset="iOS17", **options):
    """A MIL program saved as a package, as it is: no pass touches it unless asked to."""
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=OPSETS[opset],
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        **options,
    )
    model.save(str(path))
    return path


def converted(module, example, path, opset="iOS17", half=True, **options):
    """A PyTorch module as a package, through torch.export and the default passes. ``example``: arrays by name."""
    tensors = {name: torch.from_numpy(x) for name, x in example.items()}
    exported = torch.export.export(module.eval(), (), kwargs=tensors).run_decompositions({})
    options.setdefault("inputs", [ct.TensorType(name=n, shape=x.shape, dtype=x.dtype) for n, x in example.items()])
    model = ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=OPSETS[opset],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
        **options,
    )
    model.save(str(path))
    return path


def relative_l2(got, wanted):
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-12)
