"""Which file a number is, while files and numbers come and go."""

from __future__ import annotations

import fcntl
import os
import random
from contextlib import closing

import pytest

from recuse.sandbox.errands import Errands
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.socket_end import SocketEnd
from recuse.sandbox.files.table import FileTable
from recuse.sandbox.vfs.dentry import lone
from recuse.sandbox.vfs.nodes import Identity, Node
from recuse.wire.ids import Tid


@pytest.mark.parametrize("seed", range(5))
def test_a_number_is_the_file_that_it_is_now(seed: int) -> None:
    # This process is the program too. Ends are compared by numbers that are used again.
    chance = random.Random(seed)
    location = lone(Node(Identity(1, 0, 0, 0), 0o20600), b"/dev/x")
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
