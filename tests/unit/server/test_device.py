"""How a device is described."""

from typing import Any

import pytest

from recuse import Device, File, OpenRequest, Session


class Probe(Device):
    name = "probe"

    def open(self, request: OpenRequest) -> File:
        return File()


@pytest.mark.parametrize(
    "name", ["a", "a" * 64, "snd/echo", "a=b", "a b", "ä" * 32, "a.b", "...", "a\udc80"]
)
def test_good_names(name: str) -> None:
    assert Probe(name=name).name == name
    Session(Probe(name=name))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "not 1 to 64 bytes"),
        ("a" * 65, "not 1 to 64 bytes"),
        ("ä" * 33, "not 1 to 64 bytes"),
        ("/dev/echo", "not a path below /dev"),
        ("a//b", "not a path below /dev"),
        ("a/", "not a path below /dev"),
        (".", "not a path below /dev"),
        ("a/../b", "not a path below /dev"),
        ("a/./b", "not a path below /dev"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x7f", "control characters"),
        (" a", "white space"),
        ("a ", "white space"),
        (b"a", "not a string"),
        (5, "not a string"),
    ],
)
def test_bad_names(name: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        Probe(name=name)
    assert str(caught.value).startswith(f"Probe.name is {name!r}: ")


def probe_with(attribute: str, value: Any) -> Probe:
    return Probe(**{attribute: value})


@pytest.mark.parametrize(
    ("attribute", "least", "most"),
    [
        ("mode", 0, 0o777),
        ("uid", 0, 0xFFFFFFFE),
        ("gid", 0, 0xFFFFFFFE),
        ("major", 0, 511),
        ("minor", 0, 0xFFFFF),
        ("max_read", 4096, 1 << 20),
        ("max_write", 4096, 1 << 20),
        ("map_length", 1, 1 << 40),
    ],
)
def test_ranges(attribute: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(probe_with(attribute, value), attribute) == value
    for wrong in (least - 1, most + 1, "1"):
        with pytest.raises(ValueError, match=rf"Probe\.{attribute} is {wrong!r}: not {least} to"):
            probe_with(attribute, wrong)


def test_arguments_override_class_attributes_of_one_instance() -> None:
    device = Probe(name="one", mode=0o600, seekable=True, unrestricted=False)
    assert (device.name, device.mode, device.seekable, device.unrestricted) == (
        "one",
        0o600,
        True,
        False,
    )
    other = Probe()
    assert (other.name, other.mode, other.seekable, other.unrestricted) == (
        "probe",
        0o666,
        False,
        True,
    )


def test_a_subclass_may_set_attributes_itself() -> None:
    class Own(Probe):
        def __init__(self, number: int) -> None:
            self.name = f"own{number}"

    assert Session(Own(3)).device.name == "own3"


@pytest.mark.parametrize(
    ("attribute", "value"), [("name", ""), ("mode", 0o1000), ("max_read", 1), ("major", None)]
)
def test_class_attributes_are_checked_by_the_session(
    attribute: str, value: int | str | None
) -> None:
    wrong = type("Wrong", (Probe,), {attribute: value})
    with pytest.raises(ValueError, match=rf"Wrong\.{attribute}"):
        Session(wrong())


def test_a_device_without_open_is_none() -> None:
    class Shut(Device):
        name = "shut"

    with pytest.raises(TypeError, match="Shut has no open method"):
        Session(Shut())
