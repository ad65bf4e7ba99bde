"""int8 by onnxruntime's static quantisation: convolutions alone, symmetric and per channel, in pairs that TensorRT takes."""

import tempfile
from pathlib import Path

import numpy as np

from train.exporting.lines import Lines
from train.exporting.runtime import open_file
from train.exporting.writing import quiet

WORTH = 0.9  # a group of convolutions is left out where the error is less than this of the error with it
TRIED = 3  # samples that groups are tried on


def write_int8(source, path, feeds):
    """An .onnx of float32 -> one of int8 convolutions.

    Groups that are tried are those at the two ends and behind the cameras' view: what a network's first and last convolutions,
    and the compressor, lose is measured by the mean error of the first output.

    Args:
        feeds: list of {input: array} of one sample each, that ranges are found on.
    Returns:
        {"left_out": [names of groups], "error": {group or "none": mean absolute error of the first output}}.
    """
    import onnx

    lines = Lines(onnx.load(str(source)))
    groups = {"stem": lines.stems(), "compressor": lines.compressors(), "heads": lines.heads()}
    groups = {name: lines.names(numbers) for name, numbers in groups.items() if numbers}
    few, errors = feeds[:TRIED], {}
    run = open_file(source)
    want = [next(iter(run(arrays).values())) for arrays in few]
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, "trial.onnx")
        for name, nodes in {"none": [], **groups}.items():
            _quantise(source, trial, few, nodes)
            run = open_file(trial)
            got = [next(iter(run(arrays).values())) for arrays in few]
            errors[name] = float(np.mean([np.abs(a - b).mean() for a, b in zip(want, got, strict=True)]))
    left_out = [name for name in groups if errors[name] < WORTH * errors["none"]]
    _quantise(source, path, feeds, [node for name in left_out for node in groups[name]])
    return {"left_out": left_out, "error": errors}


class _Reader:
    """What the quantiser asks for one sample after another."""

    def __init__(self, feeds):
        self.left = iter(feeds)

    def get_next(self):
        return next(self.left, None)


def _quantise(source, path, feeds, excluded):
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with quiet():
        quantize_static(
            str(source),
            str(path),
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
