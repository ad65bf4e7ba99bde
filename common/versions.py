"""Versions of this project and of packages, without importing them."""

import tomllib
from importlib import metadata
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def own_version():
    """Of bevshards: of the checkout where this is one, which may have moved on since it was installed."""
    if _CHECKOUT.is_file():
        return tomllib.loads(_CHECKOUT.read_text())["project"]["version"]
    return version_of("bevshards")


def version_of(package):
    """Of an installed package; "not installed" without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
