"""Where FUSE over io_uring is asked for and not possible, `/dev/fuse` serves."""

from __future__ import annotations

import errno
import os
import resource

import pytest

import recuse
from recuse import Filesystem, Mount
from recuse.channel.devcuse import Channel
from recuse.channel.io_uring import Ring
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.fuse import FUSE_INIT

from .programs import CPUS, STAT, python, result, tree


def served_without(caplog: pytest.LogCaptureFixture, filesystem: Filesystem | None = None) -> Mount:
    """Mount with the option, see that it works without rings, and end it."""
    with Mount(filesystem or tree(), None, "io_uring") as mount:
        assert not mount.uses_io_uring
        for cpu in CPUS:
            assert result(python(STAT, mount, cpu=cpu)) == "14\n"
    assert "no io_uring: " in caplog.text
    return mount


@pytest.mark.usefixtures("detached")
def test_where_the_kernel_does_not_offer_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = Channel.read

    def older(self: Channel, size: int) -> bytes | None:
        message = read(self, size)
        # Without FUSE_OVER_IO_URING, flag 41, in INIT.
        if message is not None and message[4] == FUSE_INIT:
            return message[:57] + bytes([message[57] & ~2]) + message[58:]
        return message

    monkeypatch.setattr(Channel, "read", older)
    served_without(caplog)
    assert "the kernel does not offer it" in caplog.text


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.ENOMEM])
@pytest.mark.parametrize("which", [1, len(CPUS) + 1])
def test_where_it_is_forbidden(
    number: int, which: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    init = Ring.__init__

    def refused(self: Ring, *args: int) -> None:
        made.append(self)
        if len(made) == which:
            raise OSError(number, os.strerror(number))
        init(self, *args)

    monkeypatch.setattr(Ring, "__init__", refused)
    served_without(caplog)
    assert os.strerror(number) in caplog.text


@pytest.mark.usefixtures("detached")
def test_in_a_cpuset(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # What programs ask on the last CPU could not be asked for there.
    pin = os.sched_setaffinity

    def confined(pid: int, cpus: set[int]) -> None:
        if set(cpus) == {CPUS[-1]}:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        pin(pid, cpus)

    monkeypatch.setattr(os, "sched_setaffinity", confined)
    served_without(caplog)
    assert f"this process may not use CPU {CPUS[-1]}" in caplog.text
    assert sorted(os.sched_getaffinity(0)) == CPUS


@pytest.mark.usefixtures("detached")
def test_where_the_kernel_refuses_an_entry(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # It finds the memory too small when it has been told already that there are rings.
    monkeypatch.setattr(FilesystemSession, "payload_size", 4096)
    served_without(caplog)
    assert os.strerror(errno.EINVAL) in caplog.text


@pytest.mark.usefixtures("detached")
def test_where_no_more_descriptors_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = set()
    for limit in range(max(map(int, os.listdir("/proc/self/fd"))), soft):
        mount = Mount(tree(), None, "io_uring")
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            mount.start()
        except recuse.MountError:
            pass  # not even the mount is possible
        else:
            outcomes.add(mount.uses_io_uring)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            mount.close()
        if True in outcomes:
            break
    assert outcomes == {False, True}
    assert f"no io_uring: {os.strerror(errno.EMFILE)}" in caplog.text
