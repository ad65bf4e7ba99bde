"""What an exported ONNX file may hold, and why: operators that onnxruntime, TensorRT 10 and OpenVINO all run alike.

TensorRT's list: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md; OpenVINO's:
https://docs.openvino.ai/2025/documentation/compatibility-and-support/supported-operations.html
"""

from collections import Counter

from common.errors import InputError

_ELEMENTWISE = "value by value"
_SHAPES = "moves or cuts values, or speaks of shapes; sizes but the batch's are constants"
ALLOWED = {
    "Conv": "convolutions of encoder, compressor and decoder",
    "ConvTranspose": "encoders that upsample by one",
    "BatchNormalization": "with stored statistics; most are inside a convolution by then",
    "InstanceNormalization": "Simple-BEV's norm, of one sample whatever the batch",
    "LayerNormalization": "encoders of timm",
    "MaxPool": "encoders",
    "AveragePool": "encoders of timm",
    "GlobalAveragePool": "squeeze and excitation",
    "ReduceMean": "squeeze and excitation, norms",
    "ReduceSum": "cameras that see a voxel; heights added up",
    "ReduceMax": "the features of a pillar's points; whether a later point lies in a voxel",
    "Resize": "bilinear by two, never antialiased: checked here",
    "GridSample": "4-D, bilinear, zeros outside: checked here",
    "MatMul": "stored images to the network's size; geometry",
    "Gemm": "linear layers",
    "Gather": "cameras, pixels and cells by constant numbers",
    "GatherElements": "features of points by number",
    "ScatterElements": "points to voxels, without reduction: checked here",
    "QuantizeLinear": "int8, symmetric",
    "DequantizeLinear": "int8, symmetric",
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Pow", "Floor", "Round", "Min", "Max"),
        _ELEMENTWISE,
    ),
    **dict.fromkeys(
        ("Relu", "Atan", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Gelu", "HardSigmoid", "HardSwish"), _ELEMENTWISE
    ),
    **dict.fromkeys(("Softmax", "Clip", "Where", "Cast", "And", "Or", "Not"), _ELEMENTWISE),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _ELEMENTWISE),
    **dict.fromkeys(("Reshape", "Transpose", "Concat", "Split", "Slice", "Pad", "Expand", "Tile"), _SHAPES),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Flatten", "Identity", "Constant", "ConstantOfShape"), _SHAPES),
    **dict.fromkeys(("Shape", "Size", "Range"), _SHAPES),
}
REFUSED = {
    "NonZero": "its size is known to nobody before it runs",
    "ScatterND": "TensorRT adds nothing up, others race",
    "CumSum": "rounding depends on how it is split",
}


def check_operators(model, opset):
    """Raise ValueError where a ModelProto is of another opset, has operators that are not ALLOWED, or weights outside.

    Returns Counter of its operators.
    """
    own = {entry.domain: entry.version for entry in model.opset_import}
    if own != {"": opset}:
        raise InputError(f"the exported file is of opsets {own}, not {opset} alone; another version of torch may do")
    if model.functions:
        raise InputError(f"the exported file has functions of its own, such as {model.functions[0].name}")
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise InputError("the exported file keeps weights beside it")
    for node in model.graph.node:
        _check_node(node)
    return Counter(node.op_type for node in model.graph.node)


def _check_node(node):
    settings = {attribute.name: attribute for attribute in node.attribute}
    reason = None
    if node.domain or node.op_type not in ALLOWED:
        reason = REFUSED.get(node.op_type, "it is not among those that all runtimes have")
    elif node.op_type == "Resize" and "antialias" in settings and settings["antialias"].i:
        reason = "it is antialiased, which TensorRT does not do"
    elif node.op_type == "ScatterElements" and settings.get("reduction") and settings["reduction"].s != b"none":
        reason = "it reduces, which TensorRT does not do"
    elif node.op_type == "GridSample" and settings.get("mode") and settings["mode"].s not in (b"bilinear", b"linear"):
        reason = "it is not bilinear"
    if reason:
        raise InputError(
            f"the exported file needs the operator {node.domain or 'ai.onnx'}.{node.op_type} ({node.name}): {reason}"
        )
