"""Which steps in time and space a car can have: what finds timestamps of another unit, and chains that turn or jump."""

import numpy as np

from preprocess.errors import SourceError

# Wide of every real set: they only have to tell microseconds from nanoseconds, milliseconds and seconds.
MIN_KEYFRAME_STEP_US = 5_000
MAX_KEYFRAME_STEP_US = 30_000_000
MAX_SWEEP_STEP_US = 10_000_000
MAX_MOVE_M = 2_000.0
UNUSUAL_STEP_S = 3.0
UNIT = "timestamps are microseconds"


def check_keyframe_step(earlier_us, later_us, what):
    """Raise SourceError, naming `what`, for a step between neighbouring keyframes that is no step forward of a car."""
    step = later_us - earlier_us
    if not MIN_KEYFRAME_STEP_US <= step <= MAX_KEYFRAME_STEP_US:
        raise SourceError(f"{what}: {1e-6 * step:.6g} s after the sample before it; {UNIT}")


def keyframe_steps_us(samples):
    """(n,) int64 steps from the keyframes of the sample table (token -> row) to those that they name as their next."""
    rows = [row for row in samples.values() if isinstance(row, dict)]
    following = ((row, samples.get(row["next"])) for row in rows)
    return np.array(
        [after["timestamp"] - row["timestamp"] for row, after in following if isinstance(after, dict)], np.int64
    )


def check_sweep_step(earlier_us, later_us, what):
    """Raise SourceError, naming `what`, for a sweep that is not before the next one, or too long before it."""
    step = later_us - earlier_us
    if not 0 < step <= MAX_SWEEP_STEP_US:
        raise SourceError(f"{what} is {1e-6 * step:.6g} s older; {UNIT}")


def check_offset(sample_us, sensor_us, what):
    """Raise SourceError, naming `what`, for a keyframe's sensor that fired long before or after its sample."""
    if abs(sensor_us - sample_us) > MAX_SWEEP_STEP_US:
        raise SourceError(f"{what}: {1e-6 * (sensor_us - sample_us):.6g} s after its sample; {UNIT}")


def check_moves(places, frames, reference):
    """Raise SourceError for a sweep whose sensor stood further from its keyframe than a car drives meanwhile.

    Args:
        places: (n, 3) metres, of the sensors of the n SensorFrames in the ego frame of the keyframe `reference`.
    """
    far = np.abs(places).max(1) > MAX_MOVE_M
    if far.any():
        n = int(np.flatnonzero(far)[0])
        raise SourceError(
            f"sample_data {frames[n].token}: by its ego_pose {np.abs(places[n]).max():.3g} m from keyframe {reference}"
        )
