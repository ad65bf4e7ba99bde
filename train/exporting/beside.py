"""An exported file in a network's place, for evaluation, with the network itself beside it."""

import torch
from torch import nn

from common.errors import InputError
from train.exporting.card import read_card, sha256_of
from train.exporting.compare import NEAR, Comparison, as_tensors
from train.exporting.feeds import Feeds
from train.exporting.graph import Form, reference_graph
from train.exporting.runtime import open_file

SAME_PLACE = 1e-3  # metres, and of rotations' entries, within which cameras stand where the baked ones do


class Beside(nn.Module):
    """What evaluation takes as a network: outputs are the file's; `found`, a Comparison, counts where the network's are others.

    The network sees what the file sees: the same resized images, the same calibration where one is baked in.

    Args:
        file: exported. network: that of its checkpoint, on the CPU in evaluation. loader: of evaluation. grid: VoxUtil.
    """

    def __init__(self, file, network, loader, grid):
        super().__init__()
        card = read_card(file)
        if sha256_of(file) != card["sha256"]:
            raise InputError(f"{file}: not the file that its card was written for; export it again")
        voxels = any(name.endswith("_voxels") for name in card["inputs"])
        form = Form(card["images"], "voxels" if voxels else "points", card["calibration"])
        self.network, self.grid, self.needs = network, grid, network.needs
        self.metrics, self.card = getattr(network, "metrics", None), card
        self.feeds, self.run = Feeds(network, loader, grid, form), open_file(file)
        self.constants = {name: torch.tensor(value) for name, value in card["constants"].items()}
        self.found, self.elsewhere, self._reference = Comparison(), 0, None
        self.facts = {"file": str(file), "sha256": card["sha256"], "precision": card["precision"]}

    def forward(self, batch, grid):
        tensors = self.feeds.of(batch)
        if self._reference is None:
            self._reference = reference_graph(self.network, self.feeds.stages(tensors), tensors, self.constants)
        if "ref_T_cams" in self.constants:
            apart = (tensors["ref_T_cams"] - self.constants["ref_T_cams"]).abs().flatten(1).amax(1)
            self.elsewhere += int((apart > SAME_PLACE).sum())
        got = as_tensors(self.run({name: tensors[name].numpy() for name in self._reference.inputs}))
        self.found.add(batch, self._reference.run(tensors), got)
        return got

    def lines(self):
        """What was found, for the console."""
        found = self.found
        own, other = found.iou()
        yield (
            f"{self.facts['file']}: {found.other} of {found.cells} cells predicted otherwise than by the checkpoint, "
            f"{found.near} of them within {NEAR:g} of the threshold"
        )
        if own:
            yield f"IoU {other['iou']:.5f}, the checkpoint's {own['iou']:.5f}"
        if self.elsewhere:
            yield (
                f"note: the cameras of {self.elsewhere} of {found.samples} samples stand elsewhere than in the calibration "
                f"of {self.card['calibration']}, which is baked in; both are looked at through that one"
            )
