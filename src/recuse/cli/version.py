"""Which recuse this is."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def version() -> str:
    """The version of what is installed; or that nobody knows, where only the files were copied."""
    try:
        return installed_version("recuse")
    except PackageNotFoundError:
        return "of an unknown version (it was copied here, not installed)"
