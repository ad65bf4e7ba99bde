"""A Graph -> one file: ONNX, or torch's own exported program."""

import contextlib
import io
import json
import logging
import warnings

import torch

from common.errors import InputError
from train.exporting.runtime import NAMES

OPSET = 18  # 4-D GridSample of opsets 16 to 19, float32, is what onnxruntime, TensorRT 10 and OpenVINO all take
FOLDED = 1 << 28  # bytes of a constant that may be worked out here: all weights, transposed or joined


def dynamic_shapes(names):
    """What torch.export is told of the axes that vary: the batch, and the number of padded points of each sensor."""
    dims = {name: torch.export.Dim(name) for name in {"batch", *filter(None, map(counted_axis, names))}}
    return (tuple({0: dims["batch"]} | ({1: dims[axis]} if (axis := counted_axis(name)) else {}) for name in names),)


def counted_axis(name):
    """What the second axis of an input is called where it is as long as a batch's longest cloud; else None."""
    sensor, _, what = name.partition("_")
    return f"{sensor}_longest" if sensor in ("lidar", "radar") and what in ("points", "cells", "features") else None


def export_program(graph, tensors):
    """torch's ExportedProgram of a Graph; tensors: of one sample, which is traced as two."""
    two = tuple(torch.cat([tensors[name]] * 2) for name in graph.inputs)
    with quiet(), torch.no_grad():
        return torch.export.export(graph.eval(), two, dynamic_shapes=dynamic_shapes(graph.inputs))


def write_torch(program, graph, path):
    """The program as .pt2, with the names of what it takes and gives in their order."""
    _drop_dead_regions(program.graph_module)
    names = json.dumps([graph.inputs, graph.outputs])
    torch.export.save(program, str(path), extra_files={NAMES: names})


def _drop_dead_regions(module):
    """Take out regions without autocast whose results nobody takes, as geometry's is where calibration is baked in.

    torch writes them, and then cannot read its file.
    """
    for node in reversed(list(module.graph.nodes)):
        if getattr(node.target, "__name__", "") == "wrap_with_autocast" and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def write_onnx(program, graph, path):
    """The program as one .onnx of OPSET, weights inside, its constants worked out. Raises ValueError where it cannot be."""
    import onnx
    import onnxscript

    with quiet():
        try:
            made = torch.onnx.export(
                program,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise InputError(
                f"{type(graph.network).__name__}: torch cannot write it as ONNX ({reason:.300}); --format torch may do"
            ) from None
        onnxscript.optimizer.optimize_ir(made.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    proto = made.model_proto
    _name_axes(proto.graph)
    onnx.save(proto, str(path))


def _name_axes(graph):
    """Call the axes that vary by what they are; shapes within, which runtimes work out anew, go with their names."""
    named = {}
    for value in graph.input:
        axes = value.type.tensor_type.shape.dim
        named[axes[0].dim_param] = "batch"
        if axis := counted_axis(value.name):
            named[axes[1].dim_param] = axis
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = named[axis.dim_param]
    del graph.value_info[:]


@contextlib.contextmanager
def quiet():
    """What exporters say of themselves is no message to a user: their failures are raised, and the file is checked."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
