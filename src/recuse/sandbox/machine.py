"""A sandbox's machine: its devices, its tree and its open files, for all programs in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from recuse.channel.inprocess import InProcessChannel, connect
from recuse.kernel.devices import DeviceTable
from recuse.kernel.files import OpenFile
from recuse.kernel.operation import run
from recuse.sandbox.descriptors import Descriptors
from recuse.sandbox.memory import StringReader
from recuse.sandbox.tasks import Tasks
from recuse.sandbox.tree import Tree
from recuse.server.device import Device

_log = logging.getLogger("recuse.sandbox")


class Machine:
    """What the programs of one sandbox share."""

    def __init__(self) -> None:
        self.table = DeviceTable()
        self.tasks = Tasks()
        self.descriptors = Descriptors(_release)
        self.tree = Tree(self.tasks, self.descriptors)
        self.strings = StringReader()
        self._channels: list[InProcessChannel] = []

    def add(self, device: Device) -> None:
        """Connect a device: it is in the tree when this returns.

        Raises:
            OSError: EEXIST if the name, EBUSY if the number is taken.
        """
        channel = connect(self.table, device)
        self._channels.append(channel)
        if channel.device is not None:
            self.tree.add(channel.device)

    def close(self) -> None:
        """Release all files and end all devices."""
        self.descriptors.close()
        for channel in self._channels:
            if channel.device is not None:
                self.tree.remove(channel.device)
            channel.close()
        self._channels.clear()
        self.tree.close()
        self.strings.close()
        self.tasks.close()


def _release(file: OpenFile, released: Callable[[], None]) -> None:
    def done(_: Any, error: OSError | None) -> None:
        if error is not None:
            # The program has closed the file and gone on: nobody else can be told.
            _log.debug("release of %s: %s", file.device.name, error)
        released()

    run(file.device.connection, file.release(), done)
