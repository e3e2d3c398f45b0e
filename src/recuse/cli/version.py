"""The version of recuse."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def version() -> str:
    """The version that is installed; unknown if the files were only copied."""
    try:
        return installed_version("recuse")
    except PackageNotFoundError:
        return "(unknown version: copied here, not installed)"
