"""How this package reports errors."""

from __future__ import annotations

import os


def os_error(number: int) -> OSError:
    """Return the OSError (of the right subclass) for a positive errno."""
    return OSError(number, os.strerror(number))
