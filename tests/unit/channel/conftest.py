"""A socket's path, and mounts for the tests of devices on a FUSE mount."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse import Device, Mount, MountError
from recuse.server.filesystem.device_tree import DeviceTree
from tests.conftest import Needs

from .mounted import WAIT_S

Serve = Callable[..., Mount]
OPTIONS = "noexec,allow_other"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a server's socket is to be."""
    return str(tmp_path / "s")


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not in pytest's, which others may not enter.
    with tempfile.TemporaryDirectory(prefix="recuse-") as parent:
        os.chmod(parent, 0o755)
        made = Path(parent, "mount")
        made.mkdir()
        yield made


@pytest.fixture
def mount(needs: Needs, directory: Path) -> Iterator[Serve]:
    """Serve devices at `directory` until the end of the test."""
    needs("/dev/fuse")
    if os.geteuid():
        pytest.skip("only root may mount")
    with contextlib.ExitStack() as stack:

        def serve(*devices: Device) -> Mount:
            made = Mount(DeviceTree(devices), directory, OPTIONS)
            stack.callback(made.close)
            try:
                made.start()
            except MountError as error:
                if "only root may mount" in str(error) or "no FUSE" in str(error):
                    pytest.skip(str(error))
                raise
            return made

        yield serve
    for thread in threading.enumerate():
        if thread.name.startswith("recuse-filesystem"):
            thread.join(WAIT_S)  # they refer to devices, and these to areas
    assert not os.path.ismount(directory)
    assert list(directory.iterdir()) == []


@pytest.fixture
def mapping(mount: Serve) -> Serve:
    """The same, for devices that are to be mapped."""

    def serve(*devices: Device) -> Mount:
        made = mount(*devices)
        if not made.has_backing:
            pytest.skip("this kernel has no FUSE passthrough")
        return made

    return serve
