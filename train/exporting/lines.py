"""Which nodes of an ONNX graph lie before and behind which: what may lose precision, and what may not."""

VIEW = ("GridSample", "ScatterElements")  # places that geometry decides


class Lines:
    """Of a ModelProto: after and before, node number -> set of numbers of the kinds of nodes met on the way.

    Nodes are numbered in their order, which is topological.
    """

    def __init__(self, model):
        self.nodes = list(model.graph.node)
        made = {name: n for n, node in enumerate(self.nodes) for name in node.output}
        self.inputs = [[made[name] for name in node.input if name in made] for node in self.nodes]
        self.users = [[] for _ in self.nodes]
        for n, sources in enumerate(self.inputs):
            for source in sources:
                self.users[source].append(n)

    def convolved(self):
        """Numbers of nodes that have a convolution before them: features, not geometry nor images."""
        out = set()
        for n, sources in enumerate(self.inputs):
            if any(s in out or self.nodes[s].op_type == "Conv" for s in sources):
                out.add(n)
        return out

    def view(self):
        """Numbers of GridSamples, and of what lies between them and the next convolution."""
        out = set()
        for n, sources in enumerate(self.inputs):
            kind = self.nodes[n].op_type
            if kind in VIEW or (kind != "Conv" and any(s in out for s in sources)):
                out.add(n)
        return out

    def stems(self):
        """Convolutions that have none before them: of images, and of voxels."""
        convolved = self.convolved()
        return [n for n in self._convolutions() if n not in convolved]

    def compressors(self):
        """Convolutions of what the cameras' view gives."""
        view = self.view()
        return [n for n in self._convolutions() if any(s in view for s in self.inputs[n])]

    def heads(self):
        """Convolutions that have none behind them."""
        followed = set()
        for n in reversed(range(len(self.nodes))):
            if any(u in followed or self.nodes[u].op_type == "Conv" for u in self.users[n]):
                followed.add(n)
        return [n for n in self._convolutions() if n not in followed]

    def names(self, numbers):
        """Names of nodes."""
        return [self.nodes[n].name for n in numbers]

    def _convolutions(self):
        return [n for n, node in enumerate(self.nodes) if node.op_type == "Conv"]
