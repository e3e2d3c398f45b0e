"""Which file a number is, while files and numbers come and go."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from recuse.sandbox.errands import Errands
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.socket_end import SocketEnd
from recuse.sandbox.files.table import FileTable
from recuse.sandbox.vfs.dentry import Location, lone
from recuse.sandbox.vfs.nodes import Identity, Node
from recuse.wire.ids import Tid


def somewhere() -> Location:
    return lone(Node(Identity(1, 0, 0, 0), 0o20600), b"/dev/x")


@pytest.mark.parametrize("seed", range(5))
def test_a_number_is_the_file_that_it_is_now(seed: int) -> None:
    # This process is the program too. Ends are compared by numbers that are used again.
    chance = random.Random(seed)
    location = somewhere()
    held: dict[int, FileDescription] = {}
    with closing(Errands()) as errands, closing(FileTable(errands)) as files:
        for _ in range(300):
            if len(held) > chance.randrange(12):
                number = chance.choice(list(held))
                os.close(number)
                files.drop(held.pop(number))
            else:
                file = FileDescription(location, 0, SocketEnd())
                files.add(file)
                # Out of the way: a program's numbers are not the supervisor's.
                held[fcntl.fcntl(file.end.theirs, fcntl.F_DUPFD_CLOEXEC, 500)] = file
                file.end.hand_over()
            slots = [one.slot.raw for one in held.values() if one.slot is not None]
            assert len(set(slots)) in (0, len(held))  # none where kcmp is forbidden
            for number, file in held.items():
                assert files.find(Tid(os.getpid()), number) is file
        for number in held:
            os.close(number)


class Counted(FileDescription):
    """Counts its releases."""

    released = 0

    def release(self, released: Callable[[], None]) -> None:
        self.released += 1
        released()


@pytest.mark.parametrize(
    ("given", "released"), [(7, 0), (None, 1), (OSError(errno.EMFILE, "full"), 1)]
)
def test_a_file_that_nobody_gets_is_released(given: int | OSError | None, released: int) -> None:
    held = []

    def add_descriptor(number: int, *, cloexec: bool) -> int | None:
        assert cloexec
        if isinstance(given, OSError):
            raise given
        if given is not None:
            held.append(os.dup(number))
        return given

    call: Any = SimpleNamespace(tid=os.getpid(), add_descriptor=add_descriptor)
    with closing(Errands()) as errands, closing(FileTable(errands)) as files:
        file = Counted(somewhere(), 0, SocketEnd())
        if isinstance(given, OSError):
            with pytest.raises(OSError, match="full"):
                files.install(call, file, cloexec=True)
        else:
            assert files.install(call, file, cloexec=True) == given
        assert file.released == released
        assert len(files) == (not released)
    assert file.released == 1
    for number in held:
        os.close(number)


def test_a_file_that_comes_after_the_end_is_released() -> None:
    with closing(Errands()) as errands:
        files = FileTable(errands)
        files.close()
        file = Counted(somewhere(), 0, SocketEnd())
        call: Any = SimpleNamespace(tid=os.getpid())
        with pytest.raises(OSError, match="No such device"):
            files.install(call, file, cloexec=False)
        assert file.released == 1
        assert file.end.ours == -1


def test_a_closed_file_counts_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the moment when it is no longer in the table."""
    counted = []
    with closing(Errands()) as errands, closing(FileTable(errands)) as files:
        file = Counted(somewhere(), 0, SocketEnd())
        files.add(file)
        theirs = os.dup(file.end.theirs)
        file.end.hand_over()

        def close(end: SocketEnd) -> None:
            counted.append(files.has_closed(file.group))
            closes(end)

        closes = SocketEnd.close
        monkeypatch.setattr(SocketEnd, "close", close)
        files.drop(file)
        monkeypatch.undo()
        os.close(theirs)
        assert not files.has_closed(file.group)
    assert counted == [True]
