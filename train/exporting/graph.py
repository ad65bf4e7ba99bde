"""What is traced: a network's infer, and before it what turns a user's tensors into those that infer takes."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from common.errors import InputError
from train.exporting.pillars import group_pillars
from train.exporting.points import lidar_voxels, radar_voxels
from train.exporting.splat import GatheredSplat
from train.exporting.view import BAKED, Sampled, Witness

INTRINSICS = ("pix_T_cams", "past_pix_T_cams")  # of pixels as the images that come in have them
CALIBRATION = ("pix_T_cams", "ref_T_cams", "ref_T_ego")  # inputs that a baked calibration takes the place of


@dataclass(frozen=True)
class Form:
    """What an export takes. images: "stored", uint8 of the shards' size, or "network", float32 in [0,1] of the network's.

    points: "points", padded with counts, or "voxels". calibration: the key of a keyframe, whose calibration is constant; ""
    takes it as an input.

    Raises:
        ValueError: another value.
    """

    images: str = "stored"
    points: str = "points"
    calibration: str = ""

    def __post_init__(self):
        for name, known in (("images", ("stored", "network")), ("points", ("points", "voxels"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r}; it is {' or '.join(known)}")


class ImagesStage(nn.Module):
    """images of stored size, and intrinsics of theirs, become the network's. resize: StoredImages."""

    def __init__(self, resize):
        super().__init__()
        self.resize = resize

    def forward(self, tensors):
        moved = {"images": self.resize(tensors["images"])}
        for name in INTRINSICS:
            if name in tensors:
                moved[name] = self.resize.moved(tensors[name])
        return tensors | moved


class VoxelStage(nn.Module):
    """Padded points become voxels. needs: Needs of the network. grid: VoxUtil."""

    def __init__(self, needs, grid):
        super().__init__()
        self.needs, self.grid = needs, grid

    def forward(self, tensors):
        rest = dict(tensors)
        ref_T_ego = rest.pop("ref_T_ego")
        if "lidar_points" in rest:
            points = rest.pop("lidar_points"), rest.pop("lidar_count")
            rest["lidar_voxels"] = lidar_voxels(*points, ref_T_ego, self.grid)
        if "radar_points" in rest:
            points = rest.pop("radar_points"), rest.pop("radar_count")
            rest["radar_voxels"] = radar_voxels(*points, ref_T_ego, self.grid, self.needs.radar == "metaradar")
        return rest


class Graph(nn.Module):
    """infer of tensors in the order of `inputs`; a tuple in the order of `outputs`.

    Args:
        network: of the interface, with infer. stages: modules from a dict of tensors to a dict of tensors, in order.
        inputs, outputs: names. constants: dict of (1,…) tensors that are given to every sample beside the inputs.
    """

    def __init__(self, network, stages, inputs, outputs, constants=None):
        super().__init__()
        self.network, self.stages = network, nn.ModuleList(stages)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.constants = tuple(constants or ())
        for name in self.constants:
            self.register_buffer(f"constant_{name}", constants[name])

    def forward(self, *tensors):
        batch = tensors[0].shape[0]
        values = dict(zip(self.inputs, tensors, strict=True))
        for name in self.constants:
            constant = getattr(self, f"constant_{name}")
            values[name] = constant.expand(batch, *(-1,) * (constant.dim() - 1))
        for stage in self.stages:
            values = stage(values)
        found = self.network.infer(**values)
        return tuple(found[name] for name in self.outputs)

    def run(self, tensors):
        """{name: output} of {name: input}, in evaluation; inputs that are constant may be among them."""
        with torch.no_grad():
            return dict(zip(self.outputs, self(*(tensors[name] for name in self.inputs)), strict=True))


def reference_graph(network, stages, tensors, constants):
    """The Graph of a network as it is, of tensors of one sample or more; what the exported one is compared with.

    Raises ValueError for a network that has no infer, or gives what cannot be exported.
    """
    inputs = [name for name in tensors if name not in constants]
    values = dict(tensors)
    with torch.no_grad():
        for stage in stages:
            values = stage(values)
        found = network.infer(**values)
    outputs = [name for name, value in found.items() if isinstance(value, torch.Tensor)]
    if "seg" in outputs:
        outputs = ["seg", *(name for name in outputs if name != "seg")]
    return Graph(network, stages, inputs, outputs, constants)


def exported_graph(reference, tensors, grid, choose):
    """The reference Graph with a camera mean that every runtime has; calibration comes in where it is among its inputs.

    Args:
        tensors: of one sample. grid: VoxUtil. choose: train.exporting.measure.quickest, of baked views.
    Returns:
        (Graph, name of the view or "", {name of each baked view: seconds}).
    """
    graph = copy.deepcopy(reference)
    group_pillars(graph.network)
    if hasattr(graph.network, "pooling"):
        graph.network.pooling = _pooling(graph, tensors)
    if not hasattr(graph.network, "unprojection"):
        return graph, "", {}
    graph.network.unprojection = witness = Witness()
    graph.run(tensors)
    view, seconds = Sampled(), {}
    if "ref_T_cams" in graph.constants:
        if len(witness.calls) > 1:
            raise InputError(
                f"{type(graph.network).__name__} looks through the cameras {len(witness.calls)} times, at several times; its "
                "calibration cannot be constant, leave out --calibration"
            )
        feats, pix_T_refs, cams_T_ref, kernels, lenses = witness.calls[0]
        views = [make(feats.shape[-2:], pix_T_refs[:1], cams_T_ref[:1], grid, lenses) for make in BAKED]
        view, seconds = choose(views, feats[:1], grid, kernels)
    graph.network.unprojection = view.eval()
    return graph, type(view).__name__, seconds


def _pooling(graph, tensors):
    """GatheredSplat of the Graph's calibration. Raises ValueError where that is an input."""
    network, values = graph.network, tensors | {name: getattr(graph, f"constant_{name}") for name in graph.constants}
    if "ref_T_cams" not in graph.constants:
        raise InputError(
            f"{type(network).__name__} sorts points by the cells that a calibration puts them into, which no exported file "
            "can; give --calibration KEY"
        )
    with torch.no_grad():
        for stage in graph.stages:
            values = stage(values)
        pix_T_cams, ref_T_cams = (values[name][:1] for name in ("pix_T_cams", "ref_T_cams"))
        return GatheredSplat(network.cells(network.geometry(pix_T_cams, ref_T_cams))[0], network.cells_xyz[:2])


def check_exportable(network):
    """Raise ValueError for a network of another kind than can be exported: it has no infer."""
    for name in ("infer", "inference_inputs"):
        if not callable(getattr(network, name, None)):
            raise InputError(
                f"{type(network).__name__} has no {name}; a network that is exported has infer(**tensors) and "
                "inference_inputs(batch, grid), see train/model/README.md"
            )
