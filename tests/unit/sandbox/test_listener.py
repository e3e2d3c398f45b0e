"""The listener when nobody is left."""

from __future__ import annotations

import os

from recuse.sandbox.listener import Listener


def test_a_thread_that_comes_after_the_end_finds_it() -> None:
    """Another one may have found it, and had the listener closed."""
    listener = Listener(os.open("/dev/null", os.O_RDONLY))
    listener.close()
    assert listener.receive() is None
    assert listener._hung_up()
    assert not listener.alive(1)
    assert not listener.answer(1, 0)
