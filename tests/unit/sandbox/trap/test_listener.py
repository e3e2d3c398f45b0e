"""What the listener's ioctls fail with, and the listener when nobody is left."""

import errno
import fcntl
import os
from collections.abc import Callable

import pytest

from recuse.cli import probes
from recuse.sandbox.arch import SUPPORTED
from recuse.sandbox.trap.listener import Listener, _wakes_receivers_at_end

Make = Callable[[int, bool], Listener]

on_supported = pytest.mark.skipif(not SUPPORTED, reason="an architecture without a sandbox")

VALID = 0x40082102


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Make:
    """``listener(error, alive)``: one whose ioctls fail like this, and whose call waits or not."""

    def make(error: int, alive: bool) -> Listener:
        def ioctl(descriptor: int, command: int, *args: object) -> int:
            if command == VALID and alive:
                return 0
            raise OSError(errno.ENOENT if command == VALID else error, "")

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        return Listener(100)

    return make


@pytest.mark.parametrize(
    "error", [errno.ENOENT, errno.ESRCH, errno.EINPROGRESS, errno.EBADF, errno.ENOTTY]
)
def test_a_caller_that_is_gone_is_no_error(listener: Make, error: int) -> None:
    assert listener(error, False).add_descriptor(1, 5, cloexec=False) is None
    assert listener(error, False).answer(1, 0) is False
    assert listener(error, False).fail(1, errno.EIO) is False
    assert listener(error, False).proceed(1) is False


@on_supported
def test_the_kernel_takes_one_answer() -> None:
    """Also while the caller has not yet run to take the first one."""
    found: list[object] = []
    mask = os.sched_getaffinity(0)

    def answer(listener: Listener, call: int) -> None:
        found.append(listener.answer(call, 5))
        found.append(listener.alive(call))
        found.append(listener.add_descriptor(call, 0, cloexec=True))
        found.append(listener.fail(call, errno.EIO))

    # On the same CPU, the caller hardly ever runs before this thread sleeps again.
    os.sched_setaffinity(0, {min(mask)})
    try:
        for _ in range(10):
            assert probes._trap(probes._NEW_LISTENER, answer) == 5
    finally:
        os.sched_setaffinity(0, mask)
    assert found == [True, False, None, False] * 10


def test_a_bad_descriptor_is_an_error_for_a_caller_that_waits(listener: Make) -> None:
    with pytest.raises(OSError, match="9"):
        listener(errno.EBADF, True).add_descriptor(1, -1 & 0xFFFFFFFF, cloexec=False)


@pytest.mark.parametrize("alive", [True, False])
def test_a_full_table_is_an_error(listener: Make, alive: bool) -> None:
    with pytest.raises(OSError, match=str(int(errno.EMFILE))):
        listener(errno.EMFILE, alive).add_descriptor(1, 5, cloexec=False)


def test_a_thread_that_comes_after_the_end_finds_it() -> None:
    """Another one may have found it, and had the listener closed."""
    listener = Listener(os.open("/dev/null", os.O_RDONLY))
    listener.close()
    assert listener.receive(tuple) is None
    assert listener._hung_up()
    assert not listener.alive(1)
    assert not listener.answer(1, 0)


@pytest.mark.parametrize(
    ("release", "wakes"),
    [
        ("5.19.0", False),
        ("6.1.0-9-amd64", False),
        ("6.8.0-45-generic", False),
        ("6.11.0", True),
        ("6.12.113+deb12-amd64", True),
        ("7.0-rc1", True),
        ("unknown", False),
    ],
)
def test_kernels_whose_receivers_sleep_on_at_the_end(release: str, wakes: bool) -> None:
    assert _wakes_receivers_at_end(release) is wakes
