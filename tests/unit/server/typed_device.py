"""A device whose author checks types strictly; test_types.py runs mypy on it.

Lines that end in a comment "E: text" are mistakes, which mypy has to find, and say that text.
"""

import ctypes
import errno
from typing import assert_type

from recuse import (
    IO,
    IOR,
    IOW,
    IOWR,
    Device,
    File,
    Memory,
    OpenRequest,
    Request,
    Session,
    current_request,
    ioctl,
)


class Caps(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32)]
    version: int


class Echo(Device):
    name = "echo"
    mode = 0o600
    uid = 1000

    def __init__(self, size: int, name: str = "echo") -> None:
        super().__init__(name=name, seekable=True)
        self.size = size

    def open(self, request: OpenRequest) -> "EchoFile":
        assert_type(request.flags, int)
        assert_type(request.nonblocking, bool)
        return EchoFile(b"")


class Slow(Device):
    async def open(self, request: Request) -> "EchoFile":
        raise OSError(errno.EBUSY, "busy")


class EchoFile(File):
    device: Echo

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, size: int, offset: int) -> memoryview:
        assert_type(self.device.size, int)
        assert_type(current_request().uid, int | None)
        assert_type(self.nonblocking, bool)
        return memoryview(self.data)[offset : offset + size]

    async def write(self, data: bytes, offset: int) -> None:
        self.data = data

    async def release(self) -> None:
        self.data = b""

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        return 0

    @ioctl(IO("E", 0))
    def nothing(self) -> None: ...

    @ioctl(IO("E", 1))
    async def nothing_later(self) -> int:
        return 1

    @ioctl(IO("E", 2))
    def number(self, argument: int) -> int | None:
        return argument

    @ioctl(0x707)
    async def pointer(self, argument: int, memory: Memory) -> None:
        caps = memory.read_struct(argument, Caps)
        assert_type(caps, Caps)
        assert_type(memory.read_array(argument, ctypes.c_uint8, 2), list[ctypes.c_uint8])
        assert_type(memory.read(argument, 4), bytes)
        assert_type(memory.read_many([(argument, 4)]), list[bytes])
        memory.write(argument, bytearray(4))
        memory.write_struct(argument, caps)

    @ioctl(IOR("E", 3, ctypes.c_size_t), ctypes.c_size_t)
    def get(self) -> int:
        return len(self.data)

    @ioctl(IOR("E", 4, ctypes.c_double), ctypes.c_double)
    async def get_float(self, memory: Memory) -> float:
        return 1.5

    @ioctl(IOW("E", 5, ctypes.c_size_t), ctypes.c_size_t)
    def set(self, size: int) -> None:
        self.data = bytes(size)

    @ioctl(IOW("E", 6, ctypes.c_bool), ctypes.c_bool)
    async def set_later(self, on: bool, memory: Memory) -> int:
        return int(on)

    @ioctl(IOWR("E", 7, ctypes.c_int), ctypes.c_int)
    def exchange(self, value: int) -> int:
        return value

    @ioctl(IOWR("E", 8, Caps), Caps)
    def change(self, caps: Caps) -> None:
        caps.version += 1

    @ioctl(0x4602, Caps, direction="r")
    async def replace(self, caps: Caps, memory: Memory) -> Caps:
        return Caps(1)

    @ioctl(IOW("E", 9, ctypes.c_uint8 * 4), ctypes.c_uint8 * 4)
    def array(self, values: ctypes.Array[ctypes.c_uint8]) -> int:
        return values[0]

    @ioctl(IOR("E", 10, 0), bytes)
    def any_size(self) -> bytes:
        return b"name\0"

    @ioctl(IOWR("E", 11, 0), bytes)
    async def any_size_both(self, data: bytes) -> bytes:
        return data

    @ioctl(IOW("E", 12, 0), bytes)
    def any_size_in(self, data: bytes, memory: Memory) -> int:
        return len(data)

    @ioctl(IOWR("E", 13, Caps), Caps, descriptor="version")
    def make(self, caps: Caps) -> "EchoFile":
        return EchoFile(b"")

    @ioctl(IOWR("E", 14, Caps), Caps, descriptor="version")
    async def make_later(self, caps: Caps, memory: Memory) -> "EchoFile":
        return EchoFile(b"")


def decorated_methods_keep_their_types(file: EchoFile) -> None:
    assert_type(file.get(), int)
    assert_type(file.any_size(), bytes)
    assert_type(file.make(Caps()), EchoFile)
    file.set(5)
    file.change(Caps())
    Session(Echo(5)).close()


class Wrong(File):
    def read(self, size: int, offset: int) -> str:  # E: Return type "str" of "read" incompatible
        return ""

    def write(self, data: str, offset: int) -> int:  # E: incompatible with supertype
        return 0

    @ioctl(IO("E", 1))  # E: incompatible type
    def result(self, argument: int) -> str:
        return ""

    @ioctl(IO("E", 2))  # E: incompatible type
    def argument(self, argument: str) -> None: ...

    @ioctl(IOR("E", 3, ctypes.c_int), ctypes.c_int)  # E: incompatible type
    def value(self) -> bytes:
        return b""

    @ioctl(IOW("E", 4, ctypes.c_int), ctypes.c_int)  # E: incompatible type
    def given(self, value: bytes) -> None: ...

    @ioctl(IOWR("E", 5, Caps), Caps)  # E: incompatible type
    def structure(self, caps: Echo) -> None: ...

    @ioctl(IOWR("E", 6, Caps), Caps)  # E: incompatible type
    def returned(self, caps: Caps) -> Echo:
        return Echo(5)

    @ioctl(IOR("E", 7, 0), bytes)  # E: incompatible type
    def data(self) -> str:
        return ""

    @ioctl(IOW("E", 8, Caps), Caps, direction="x")  # E: No overload variant  # E: untyped
    def direction(self, caps: Caps) -> None: ...

    @ioctl(IOWR("E", 10, Caps), Caps, descriptor="version")  # E: cannot be "int"
    def made(self, caps: Caps) -> int:
        return 5

    @ioctl(IOW("E", 9, int), int)  # E: incompatible type "type[int]"
    def kind(self, value: int) -> None: ...


class WrongDevice(Device):
    def open(self, request: OpenRequest) -> None: ...  # E: incompatible with return type
