"""Serve devices on the real kernel, as `recuse serve --kernel` does."""

import sys
from functools import partial

from recuse.channel.devcuse import KernelError, serve_kernel
from recuse.cli.run import configure_logging, load_devices

configure_logging()
try:
    serve_kernel(load_devices(sys.argv[1:]), partial(print, flush=True))
except KernelError as error:
    sys.exit(f"recuse: {error}")
