"""Declarations of ioctl handlers: which make sense, and what they mean."""

import ctypes
from ctypes import c_int, c_uint32
from typing import Any

import pytest

from recuse import IO, IOR, IOW, File, Memory, ioctl


class Pair(ctypes.Structure):
    _fields_ = [("a", c_uint32), ("b", c_uint32)]


@pytest.mark.parametrize(
    ("arguments", "options", "why"),
    [
        ((-1,), {}, "32 bits"),
        ((1 << 32,), {}, "32 bits"),
        ((IO("E", 1), c_int), {}, "has no direction: give direction="),
        ((IO("E", 1), bytes), {}, "has no direction"),
        ((IOR("E", 1, 8), c_int), {}, "says 8 bytes, but c_int has 4"),
        ((IOR("E", 1, c_int), c_int), {"direction": "x"}, "direction is 'x'"),
        ((IOR("E", 1, c_int), c_int), {"direction": ""}, "direction is ''"),
        ((IO("E", 1),), {"direction": "r"}, "needs an argument with a type"),
    ],
)
def test_declarations_that_contradict_themselves(
    arguments: tuple[Any, ...], options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        ioctl(*arguments, **options)


@pytest.mark.parametrize(
    "type_", [int, str, 4, ctypes.POINTER(c_int), ctypes.py_object, c_int(4), list[int]]
)
def test_types_that_cannot_be(type_: Any) -> None:
    with pytest.raises(TypeError, match="not a simple ctypes type"):
        ioctl(IOR("E", 1, 8), type_, direction="r")


def test_handlers_that_cannot_be_called() -> None:
    with pytest.raises(TypeError, match=r"get, which answers ioctl .* given nothing"):

        class One(File):
            @ioctl(IOR("E", 1, c_int), c_int)
            def get(self, value: int) -> int:
                return 0

    with pytest.raises(TypeError, match=r"set, which answers ioctl .* given the argument"):

        class Two(File):
            @ioctl(IOW("E", 1, c_int), c_int)
            def set(self) -> int:
                return 0

    with pytest.raises(TypeError, match="takes a, b"):

        class Three(File):
            @ioctl(IO("E", 1))  # type: ignore[arg-type]  # one too many
            def set(self, a: int, b: int) -> int:
                return 0

    with pytest.raises(TypeError, match="takes memory, value"):

        class Five(File):
            @ioctl(IOW("E", 1, c_int), c_int)  # type: ignore[arg-type]  # in the wrong order
            def set(self, memory: Memory, value: int) -> int:
                return 0

    with pytest.raises(TypeError, match=r"unknown_ioctl takes command, argument; it is given"):

        class Four(File):
            def unknown_ioctl(  # type: ignore[override]  # that is what is wrong
                self, command: int, argument: int
            ) -> int:
                return 0


def test_two_handlers_of_one_command() -> None:
    with pytest.raises(TypeError, match=r"Probe.one and Probe.two both answer ioctl 0x4501"):

        class Probe(File):
            @ioctl(IO("E", 1))
            def one(self) -> int:
                return 0

            @ioctl(IO("E", 1))
            def two(self) -> int:
                return 0


def test_a_method_named_ioctl_would_hide_the_decorator() -> None:
    with pytest.raises(TypeError, match="is called unknown_ioctl"):

        class Probe(File):
            def ioctl(self, command: int, argument: int) -> int:
                return 0
