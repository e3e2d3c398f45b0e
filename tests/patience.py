"""How long tests wait for what must come; only a failure takes as long."""

import os

SLOWNESS = int(os.environ.get("RECUSE_SLOWNESS", "1"))
"""How many times slower than other machines this one is: an emulated one says so."""

PATIENCE_S = 50 * SLOWNESS
