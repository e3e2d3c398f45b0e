"""The echo example on the real kernel: the same tests as in the sandbox."""

from ..examples.test_echo import *  # noqa: F403
