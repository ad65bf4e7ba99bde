"""Outputs that are not finite: no prediction, and never passed over in silence."""

import torch

NO_PREDICTION = -100.0  # logit of a cell of which the network says nothing: a probability of 4e-44
LABELLED = ("seg", "center", "offset")  # outputs that are compared with labels


def finite_outputs(outputs):
    """What a network said, in evaluation.

    Args:
        outputs: mapping with any of LABELLED, each (B,…); other entries are the network's own and may hold anything.
    Returns:
        (outputs with a seg whose cells that are not finite predict nothing, (B,) bool of the samples in which one of
        LABELLED is not finite, on the device; None where there are none of these).
    """
    found = [outputs[name] for name in LABELLED if name in outputs]
    if not found:
        return outputs, None
    wrong = torch.stack([~value.isfinite().flatten(1).all(1) for value in found]).any(0)
    if "seg" in outputs:
        seg = outputs["seg"]
        outputs = {**outputs, "seg": torch.where(seg.isfinite(), seg, NO_PREDICTION)}
    return outputs, wrong
