"""The serial port on the real kernel, with the same programs as in the sandbox."""

from ..examples.test_serial import (  # noqa: F401
    test_a_read_that_waits_is_ended,
    test_flushing_and_breaks,
    test_it_is_a_terminal,
    test_picocom,
    test_stty,
    test_stty_saves_and_restores,
    test_the_loopback_plug,
)
