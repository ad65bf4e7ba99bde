"""float16: features of convolutions alone."""

from train.exporting.lines import Lines

# Norms sum over whole maps, which half precision cannot count to; GridSample is float32 in onnxruntime; the rest says types.
FLOAT32 = {"GridSample", "InstanceNormalization", "LayerNormalization", "ScatterElements", "Resize"} | {
    *("ReduceMean", "ReduceSum", "Cast", "Range", "ConstantOfShape", "Pow", "Softmax")
}


def write_half(source, path):
    """An .onnx of float32 -> one whose features are float16; inputs and outputs stay float32.

    Geometry, images up to the first convolution, and the mean over cameras stay float32: a coordinate in half precision errs by
    pixels, and the mean's divisor, where no camera sees a voxel, is beyond its range.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    lines = Lines(model)
    convolved, view = lines.convolved(), lines.view()
    own = {
        n
        for n, node in enumerate(lines.nodes)
        if (node.op_type == "Conv" or n in convolved) and n not in view and node.op_type not in FLOAT32
    }
    _Halving(onnx, model, own).run()
    onnx.save(model, str(path))


class _Halving:
    """Makes the nodes of these numbers float16, with a Cast wherever a tensor goes from one kind to the other."""

    def __init__(self, onnx, model, own):
        self.onnx, self.graph, self.own = onnx, model.graph, own
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        typed = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self.floats = {v.name for v in typed if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        self.floats |= {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
        self.outputs = {output.name for output in model.graph.output}
        self.half, self.made, self.nodes = set(), {}, []  # made: (name, kind) -> the tensor of that kind

    def run(self):
        for n, node in enumerate(list(self.graph.node)):
            is_own = n in self.own
            for place, name in enumerate(node.input):
                if name in self.floats and (is_own or name in self.half):
                    node.input[place] = self._as(name, is_own)
            self.nodes.append(node)
            if is_own:
                self._mark(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]
        used = {name for node in self.nodes for name in node.input} | self.outputs
        kept = [tensor for tensor in self.weights.values() if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _mark(self, node):
        """What a node gives is float16 now; an output of the graph is cast back under its name."""
        for place, name in enumerate(node.output):
            if name not in self.floats:
                continue
            if name in self.outputs:
                node.output[place] = f"{name}_half"
                self._cast(node.output[place], name, self.onnx.TensorProto.FLOAT)
                self.made[name, True] = node.output[place]
            else:
                self.half.add(name)

    def _as(self, name, half):
        """The name under which a tensor is float16, or float32."""
        if (name in self.half) == half:
            return name
        if (name, half) not in self.made:
            self.made[name, half] = made = f"{name}_{'half' if half else 'float'}"
            if name in self.weights:
                value = self.onnx.numpy_helper.to_array(self.weights[name]).astype("float16")
                self.weights[made] = self.onnx.numpy_helper.from_array(value, made)
            else:
                kinds = self.onnx.TensorProto
                self._cast(name, made, kinds.FLOAT16 if half else kinds.FLOAT)
        return self.made[name, half]

    def _cast(self, source, target, kind):
        self.nodes.append(self.onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind))
