"""What pictures are written: their sizes and kinds of file."""

from common.errors import InputError

DRAWS = 8  # of one sample's augmentation, side by side
SHEET_PX, DRAWS_PX = 1600, 1920  # columns
PICTURES = (".png", ".jpg", ".jpeg")


def check_picture(path):
    """Raise ValueError for a name that is not a picture's."""
    if not str(path).lower().endswith(PICTURES):
        raise InputError(f"--out {path}: a picture ends in {' or '.join(PICTURES)}")


def points_of(text):
    """The sensors of a comma list. Raises ValueError for others than lidar and radar."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if set(names) - {"lidar", "radar"}:
        raise InputError(f"--points {text}: it is lidar, radar or lidar,radar")
    return names
