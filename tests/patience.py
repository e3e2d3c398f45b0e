"""How long tests wait for what must come, and how much they try."""

import os

SLOWNESS = int(os.environ.get("RECUSE_SLOWNESS", "1"))
"""How many times slower than other machines this one is: an emulated one says so."""

PATIENCE_S = 50 * SLOWNESS
"""Only a failure takes as long."""

LONGER = int(os.environ.get("RECUSE_LONGER", "1"))
"""How many times as many random examples are tried, where that may take long."""
