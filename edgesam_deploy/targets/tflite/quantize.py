"""Lower precision of a .tflite file, by ai-edge-quantizer, on the fp32 file.

fp16            weights in half, arithmetic in fp32
dynamic-int8    weights in 8 bit per channel, activations quantised as they come; arithmetic of products in integers
int8            the encoder's convolutions and GELUs in 8 bit, ranges from calibration; sums and gates stay float
w8a16           weights in 8 bit, activations in 16; for NPUs: LiteRT has reference kernels only on a CPU

What computes the phases of the positional encoding stays in fp32 everywhere: an error of 1e-3 in ten radians is 1e-2 in
their sines. So does what computes the variance of a norm: a mean of squares, most of them small. So do products of two
values where weights have 8 bit: the kernels take no constant on the left, and the bicubic neck has two. So do depthwise
kernels where activations are float between operators: 1 % of EdgeSAM's weights, yet with them goes a third or more of
the embeddings' error in fp16 and three quarters in dynamic 8 bit, where they are slower, too. So do, in int8, the sums
and gates of the residual stream: rounded to 255 steps forty times over, they and the depthwise kernels carry over half
of the error (benchmarks/results/tflite_sensitivity.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from edgesam_deploy.contract import TensorSpec, sample_inputs
from edgesam_deploy.targets.base import Arrays
from edgesam_deploy.targets.signatures import ENCODE
from edgesam_deploy.targets.tflite import flatbuffer
from edgesam_deploy.targets.tflite.toolkits import runtime
from edgesam_deploy.toolkits import require

Precision = Literal["fp32", "fp16", "dynamic-int8", "int8", "w8a16"]
PRECISIONS = ("fp32", "fp16", "dynamic-int8", "int8", "w8a16")
CALIBRATED = ("int8", "w8a16")
EXACTLY = ("SIN", "COS", "RSQRT")  # what computes their operands keeps its weights in fp32
# operators that keep fp32, by measurement: see docs/targets/tflite.md
LEFT: Mapping[Precision, tuple[str, ...]] = {
    "fp16": ("DEPTHWISE_CONV_2D",),
    "dynamic-int8": ("BATCH_MATMUL", "DEPTHWISE_CONV_2D"),
    "int8": ("BATCH_MATMUL", "DEPTHWISE_CONV_2D", "ADD", "MUL"),
    "w8a16": ("BATCH_MATMUL",),
}
ENDS = ("min", "max")
Samples = Mapping[str, Sequence[Arrays]]  # inputs by the signature's name


def quantized(content: bytes, precision: Precision, samples: Samples, left: Sequence[str] | None = None) -> bytes:
    """The file in another precision. ``samples``: for those that are calibrated, in the file's own layout. ``left``:
    kinds of operators that keep fp32 instead of ``LEFT``.
    """
    if precision == "fp32":
        return content
    toolkit = require("ai_edge_quantizer.quantizer", "quantising a TFLite file")
    model = flatbuffer.parse(content)
    if flatbuffer.separate_readers(model):
        content = flatbuffer.packed(model)
    quantizer = toolkit.Quantizer(content, _recipe(precision))
    for name in flatbuffer.feeding(model, EXACTLY):
        _leave(quantizer, "ALL_SUPPORTED", f"^{re.escape(name)}")
    for operation in LEFT[precision] if left is None else left:
        _leave(quantizer, operation)
    ranges = None
    if precision in CALIBRATED:
        _leave(quantizer, "INPUT")
        _leave(quantizer, "OUTPUT")
        ranges = _ranges(quantizer, samples)
    result = quantizer.quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)


def in_layout(inputs: Arrays, layout: str) -> Arrays:
    """The contract's encoder inputs as the file takes them."""
    image = inputs["image"]
    if layout == "nchw" or image.dtype != np.float32:
        return inputs
    return {**inputs, "image": np.ascontiguousarray(image.transpose(0, 2, 3, 1))}


def samples_for(specs: Sequence[TensorSpec], rows: Sequence[Arrays]) -> list[Arrays]:
    """What a part takes for each row; what the row does not have, prompts, is drawn as the contract's samples are."""
    made: list[Arrays] = []
    for seed, row in enumerate(rows):
        drawn = sample_inputs(tuple(specs), seed)
        made.append({spec.name: row.get(spec.name, drawn[spec.name]) for spec in specs})
    return made


def with_outputs(content: bytes, rows: Sequence[Arrays]) -> list[Arrays]:
    """The rows with the encoder's outputs added, from its fp32 file."""
    interpreter, _ = runtime()
    encoder = interpreter(model_content=content, num_threads=2).get_signature_runner(ENCODE)
    return [{**row, **encoder(**row)} for row in rows]


def _recipe(precision: Precision) -> Any:
    recipes = require("ai_edge_quantizer.recipe", "quantising a TFLite file")
    if precision == "dynamic-int8":
        return recipes.dynamic_wi8_afp32()
    if precision == "int8":
        return recipes.static_wi8_ai8()
    if precision == "w8a16":
        return recipes.static_wi8_ai16()
    types = recipes.qtyping
    half = types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT)
    manager = recipes.recipe_manager.RecipeManager()
    manager.add_quantization_config(
        regex=".*",
        operation_name=_operation("ALL_SUPPORTED"),
        op_config=types.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=types.ComputePrecision.FLOAT, explicit_dequantize=True
        ),
        algorithm_key="float_casting",
    )
    return manager.get_quantization_recipe()


def _leave(quantizer: Any, operation: str, values: str = ".*") -> None:
    """Keep operators in fp32 whose results have such names."""
    quantizer.update_quantization_recipe(
        regex=values, operation_name=_operation(operation), algorithm_key="no_quantize"
    )


def _operation(name: str) -> Any:
    types = require("ai_edge_quantizer.qtyping", "quantising a TFLite file")
    return getattr(types.TFLOperationName, name)


def _ranges(quantizer: Any, samples: Samples) -> dict[str, Any]:
    """The range of every tensor, in the toolkit's form: its ends are medians over the samples.

    The toolkit's own calibration is a moving average that counts each sample after the first by 0.05; the union of all
    ranges is too coarse. Of three photographs the worst embeddings (EdgeSAM, seeded weights, relative L2) are off by
    0.25 with the first's ranges, 0.17 with their mean, 0.16 with their median, 0.23 and more with their union.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for signature, rows in samples.items():
        for row in rows:
            writable = {name: np.array(value) for name, value in row.items()}
            for tensor, measured in quantizer.calibrate({signature: [writable]}, num_threads=2).items():
                found.setdefault(tensor, []).append(measured)
    return {
        tensor: {**of[0], **{end: np.median([m[end] for m in of], axis=0) for end in ENDS if end in of[0]}}
        for tensor, of in found.items()
    }
