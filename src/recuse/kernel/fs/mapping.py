"""mmap(2) of regular files: private mappings, of what a file has when it is mapped."""

import os
from typing import Final

from recuse.kernel.char.mmap import Mapper, Mapping, MmapCall, check
from recuse.kernel.connection.operation import Operation
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.regular import RegularFile

_PIECE: Final = 1 << 20
"""How much is read at once."""


def map_file(
    file: RegularFile, caller: FileCaller, mapper: Mapper, call: MmapCall
) -> Operation[Mapping]:
    """Map a copy of what a file has now; the file is not released before `unmap_file`.

    Beyond the file's end the mapping has no memory (SIGBUS), except for the rest of a page. Linux
    reads a page when it is touched, so there later changes may be seen.

    Raises OSError like `recuse.kernel.char.mmap.check`; ENODEV for a shared mapping; what the
    server answers to a READ; ENOMEM; EINTR; or the error of the mapping.
    """
    return file.running(_map(file, caller, mapper, call))


def _map(
    file: RegularFile, caller: FileCaller, mapper: Mapper, call: MmapCall
) -> Operation[Mapping]:
    check(call, file.flags & os.O_ACCMODE, call.private, executable=True)
    copy = mapper.copy(call.offset)
    try:
        done = 0
        while done < call.pages:
            wanted = min(_PIECE, call.pages - done)
            data = yield from file.read(caller, wanted, call.offset + done)
            if not data:
                break
            copy.append(data)
            done += len(data)
    except BaseException:
        copy.memory.close()
        raise
    address = mapper.map(copy.memory, call, 0)
    file.hold()
    return Mapping(0, address, call.pages, 0)


def unmap_file(file: RegularFile) -> Operation[None]:
    """Note that nothing is left of a mapping. Call it once for each from `map_file`."""
    return file.running(_nothing(), mapped=True)


def _nothing() -> Operation[None]:
    return
    yield
