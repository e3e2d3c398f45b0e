"""The I2C example on the real kernel: the same tests as in the sandbox."""

from ..examples.test_eeprom import *  # noqa: F403
