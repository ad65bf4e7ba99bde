"""The card of an export: all that is known of the file beside it, as JSON."""

import hashlib
import json
from pathlib import Path

from common.errors import InputError

CARD = "card.json"


def read_card(file):
    """The card beside an exported file. Raises ValueError where there is none, or another file's."""
    path = Path(file).with_name(CARD)
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not the card of an export ({error}); keep the folder's files together") from None
    if card.get("file") != Path(file).name:
        raise InputError(f"{path} is of {card.get('file')}, not of {file}")
    return card


def sha256_of(path):
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
