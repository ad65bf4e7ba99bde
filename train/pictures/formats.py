"""What pictures are written: their sizes and kinds of file."""

DRAWS = 8  # of one sample's augmentation, side by side
SHEET_PX, DRAWS_PX = 1600, 1920  # columns
PICTURES = (".png", ".jpg", ".jpeg")


def check_picture(path):
    """Raise ValueError for a name that is not a picture's."""
    if not str(path).lower().endswith(PICTURES):
        raise ValueError(f"--out {path}: a picture ends in {' or '.join(PICTURES)}")
