"""What cells are sorted by when they are counted: rings around the reference camera and bins of predicted probability.

Without torch: what an evaluation has written is read, compared and printed without it.
"""

import numpy as np

RINGS_M = (20.0, 35.0, 50.0)  # outer radii; what lies beyond the last is a ring of its own
BINS = 100  # of predicted probability; bin p holds (p / BINS, (p + 1) / BINS]


def ring_names():
    """Names of the rings, from the inside outwards: "0-20 m", …, "beyond 50 m"."""
    inner = (0.0, *RINGS_M[:-1])
    return (*(f"{a:g}-{b:g} m" for a, b in zip(inner, RINGS_M, strict=True)), f"beyond {RINGS_M[-1]:g} m")


def both_predicted_true(histogram, threshold=0.5):
    """(…,3) int64 NumPy of (…,2,P) histograms on the CPU: cells predicted and true, predicted, true, at one threshold."""
    histogram = np.asarray(histogram)
    predicted = histogram[..., round(threshold * BINS) :].sum(-1)
    return np.stack([predicted[..., 1], predicted.sum(-1), histogram[..., 1, :].sum(-1)], -1)
