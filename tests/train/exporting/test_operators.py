"""What an exported file may hold, and what loses precision in it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from train.exporting.half import write_half
from train.exporting.lines import Lines
from train.exporting.operators import ALLOWED, REFUSED, check_operators
from train.exporting.runtime import open_file


def model(*nodes, weights=(), opset=18, shape=("B", 1, 4, 4), domain=""):
    """ModelProto from x to y, both float32 of a shape."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], initializer=list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=10)


def node(kind, inputs, output="y", **settings):
    return helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **settings)


def test_operators_that_some_runtime_lacks_are_refused_with_the_reason():
    assert check_operators(model(node("Relu", "x")), 18) == {"Relu": 1}
    sizes = numpy_helper.from_array(np.array([1, 1, 8, 8]), "sizes")
    for bad, told in (
        (model(node("NonZero", "x")), "NonZero .*: its size is known to nobody"),
        (model(node("ScatterND", "xxx", reduction="add")), "ScatterND"),
        (model(node("ScatterElements", "xxx", reduction="max")), "it reduces, which TensorRT does not do"),
        (model(node("Resize", ["x", "", "", "sizes"], antialias=1), weights=[sizes]), "it is antialiased"),
        (model(node("GridSample", "xx", mode="nearest")), "it is not bilinear"),
        (model(node("LSTM", "xxx")), "not among those that all runtimes have"),
        (model(node("Relu", "x"), opset=17), "of opsets {'': 17}, not 18 alone"),
        (model(node("Relu", "x"), domain="com.microsoft"), "of opsets"),
    ):
        with pytest.raises(ValueError, match=told):
            check_operators(bad, 18)
    check_operators(model(node("ScatterElements", "xxx")), 18)
    assert all(reason.strip() for reason in (*ALLOWED.values(), *REFUSED.values()))


def small():
    """Two convolutions around a mean over a view, whose coordinates come in as x; where nothing is seen, the share is 1e6."""
    rng = np.random.default_rng(0)
    first, last = (
        numpy_helper.from_array(rng.normal(size=(1, 1, 3, 3)).astype(np.float32), n) for n in ("first", "last")
    )
    share = numpy_helper.from_array(np.full((1, 1, 4, 4), 1e6, np.float32), "share")
    grid = numpy_helper.from_array(rng.uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32), "grid")
    scale = numpy_helper.from_array(np.float32(2e-6), "scale")
    return model(
        node("Conv", ["x", "first"], "a", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "b"),
        node("Mul", ["grid", "grid"], "square"),
        node("GridSample", ["b", "square"], "c"),
        node("Mul", ["c", "share"], "d"),
        node("Mul", ["d", "scale"], "e"),
        node("Conv", ["e", "last"], "f", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["f"], "y"),
        weights=(first, last, share, grid, scale),
        shape=(1, 1, 4, 4),
    )


def test_features_alone_become_float16(tmp_path):
    made = small()
    lines = Lines(made)
    assert lines.names(lines.stems()) == ["Conv_a"] and lines.names(lines.heads()) == ["Conv_f"]
    assert lines.names(lines.compressors()) == ["Conv_f"]
    onnx.save(made, tmp_path / "whole.onnx")
    write_half(tmp_path / "whole.onnx", tmp_path / "half.onnx")
    half = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(half, full_check=True)
    check_operators(half, 18)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds == {
        **dict.fromkeys(("first_half", "last_half"), TensorProto.FLOAT16),
        **dict.fromkeys(("share", "grid", "scale"), TensorProto.FLOAT),  # 1e6 is beyond half precision
    }
    x = np.random.default_rng(1).normal(size=(1, 1, 4, 4)).astype(np.float32)
    want, got = (open_file(tmp_path / name)({"x": x})["y"] for name in ("whole.onnx", "half.onnx"))
    assert got.dtype == np.float32 and 0 < np.abs(want - got).max() < 5e-3
