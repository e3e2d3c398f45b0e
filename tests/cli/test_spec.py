"""What -d means: taking it apart, finding the class, converting its arguments, and the errors."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recuse.server.filesystem.filesystem  # noqa: F401  # once: each test forgets its imports
from recuse.cli.spec import Spec, SpecError, load, parse

ECHO = """
from recuse.server.device import Device, File

class Echo(Device):
    name = "echo"
    def open(self, request):
        return EchoFile()

class EchoFile(File):
    pass
"""

# Takes an argument of each kind.
KINDS = (
    ECHO
    + """
import pathlib
from typing import Optional

class Kinds(Echo):
    def __init__(self, *, size: int = 0, rate: float = 0, loud: bool = False, text: str = "",
                 path: pathlib.Path = None, limit: int | None = None,
                 most: Optional[int] = None, other=None):
        self.given = dict(size=size, rate=rate, loud=loud, text=text, path=path, limit=limit,
                          most=most, other=other)
"""
)

POSTPONED = "from __future__ import annotations\n" + KINDS

UNRESOLVED = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from elsewhere import Thing
""" + KINDS.replace("other=None)", "other: Thing = None)")


@pytest.fixture(autouse=True)
def _imports_are_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


_numbers = itertools.count()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def error_of(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(parse(text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "source", "class_name", "arguments", "is_file"),
    [
        ("echo.py", "echo.py", None, {}, True),
        ("a/b/echo.py:Echo", "a/b/echo.py", "Echo", {}, True),
        ("./echo", "./echo", None, {}, True),
        ("a:b/echo.py", "a:b/echo.py", None, {}, True),
        ("package.module:Echo", "package.module", "Echo", {}, False),
        ("package.module", "package.module", None, {}, False),
        ("m.py,size=0x10,name=a b", "m.py", None, {"size": "0x10", "name": "a b"}, True),
        ("m.py:M,url=a=b:c/d", "m.py", "M", {"url": "a=b:c/d"}, True),
        ("m.py,name=", "m.py", None, {"name": ""}, True),
    ],
)
def test_parse(
    text: str, source: str, class_name: str | None, arguments: dict[str, str], is_file: bool
) -> None:
    spec = parse(text)
    assert spec == Spec(source, class_name, arguments)
    assert spec.is_file == is_file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo.py,loud", "echo.py,loud: a comma must be followed by KEY=VALUE, not 'loud'"),
        ("echo.py,", "echo.py,: a comma must be followed by KEY=VALUE, not ''"),
        ("echo.py,a-b=1", "echo.py,a-b=1: a comma must be followed by KEY=VALUE, not 'a-b=1'"),
        ("echo.py,a=1,a=2", "echo.py,a=1,a=2: a is given twice"),
        ("echo.py:", "echo.py:: the colon must be followed by the name of a class"),
        ("echo.py:3", "echo.py:3: the colon must be followed by the name of a class"),
        ("", "'': name a device by FILE.py, FILE.py:CLASS or MODULE:CLASS"),
        (":Echo", "':Echo': name a device by FILE.py, FILE.py:CLASS or MODULE:CLASS"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["echo.py", "echo.py:Echo", "./echo.py", "echo:Echo", "echo"])
def test_load(directory: Path, text: str) -> None:
    write(directory, "echo.py", ECHO)
    device = load(parse(text))
    assert type(device).__name__ == "Echo"
    assert device.name == "echo"


def test_load_from_a_package(directory: Path) -> None:
    write(directory, "devices_of_a_test/__init__.py", "")
    write(directory, "devices_of_a_test/sound.py", ECHO)
    device = load(parse("devices_of_a_test.sound:Echo"))
    assert type(device).__module__ == "devices_of_a_test.sound"


def test_a_file_may_import_what_is_beside_it(directory: Path) -> None:
    write(directory, "far/away/beside_a_test.py", "NAME = 'beside'")
    text = "from beside_a_test import NAME\n" + ECHO.replace('"echo"', "NAME")
    write(directory, "far/away/device.py", text)
    assert load(parse("far/away/device.py")).name == "beside"


def test_a_file_is_imported_once(directory: Path) -> None:
    write(directory, "echo.py", ECHO)
    one, other = load(parse("echo.py,name=one")), load(parse("./echo.py:Echo,name=other"))
    assert type(one) is type(other)
    assert (one.name, other.name) == ("one", "other")


def test_files_of_the_same_name_are_two_modules(directory: Path) -> None:
    write(directory, "a/echo.py", ECHO.replace('"echo"', '"a"'))
    write(directory, "b/echo.py", ECHO.replace('"echo"', '"b"'))
    assert load(parse("a/echo.py")).name == "a"
    assert load(parse("b/echo.py")).name == "b"


def test_a_dataclass_is_a_device_too(directory: Path) -> None:
    # dataclasses looks its module up in sys.modules.
    head = "from __future__ import annotations\nimport dataclasses\n"
    body = ECHO.replace("class Echo(", "@dataclasses.dataclass\nclass Echo(")
    body = body.replace('name = "echo"', 'name: str = "echo"\n    size: int = 0')
    write(directory, "echo.py", head + body)
    device: Any = load(parse("echo.py,size=0x10"))
    assert device.size == 16


@pytest.mark.parametrize("source", [KINDS, POSTPONED, UNRESOLVED])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("size=4096", 4096),
        ("size=0x1000", 4096),
        ("size=-1", -1),
        ("rate=0.5", 0.5),
        ("rate=2", 2.0),
        ("loud=true", True),
        ("loud=On", True),
        ("loud=0", False),
        ("loud=no", False),
        ("text=12", "12"),
        ("text=", ""),
        ("path=/dev/null", Path("/dev/null")),
        ("limit=0o17", 15),
        ("most=15", 15),
        ("other=12", "12"),
    ],
)
def test_arguments_are_converted(directory: Path, source: str, argument: str, value: Any) -> None:
    write(directory, "kinds.py", source)
    device: Any = load(parse(f"kinds.py:Kinds,{argument}"))
    given = device.given[argument.partition("=")[0]]
    assert given == value
    assert type(given) is type(value)


def test_any_argument_where_the_constructor_takes_any(directory: Path) -> None:
    init = "def __init__(self, **given): self.given = given\n    def open("
    write(directory, "echo.py", ECHO.replace("def open(", init))
    device: Any = load(parse("echo.py,one=1,two=2"))
    assert device.given == {"one": "1", "two": "2"}


def test_arguments_for_a_base_class_are_what_that_says(directory: Path) -> None:
    """A constructor with ** passes them on."""
    write(directory, "kinds.py", KINDS)
    write(
        directory,
        "more.py",
        """
from kinds import Kinds

class More(Kinds):
    def __init__(self, more: float, **options):
        super().__init__(**options)
        self.more = more
""",
    )
    device: Any = load(parse("more.py,more=2,size=0x10"))
    assert (device.more, device.given["size"]) == (2.0, 16)
    assert error_of("more.py,more=2,size=x") == (
        "more.py: size=x: size must be a number, such as 4096, 0x1000 or 0o660"
    )


def test_a_constructor_need_not_take_what_every_device_has(directory: Path) -> None:
    body = ECHO.replace("def open(", "def __init__(self, size=1): self.size = size\n    def open(")
    write(directory, "echo.py", body)
    device: Any = load(parse("echo.py,name=echo1,mode=0o600,seekable=yes,size=3"))
    assert (device.name, device.mode, device.seekable, device.size) == ("echo1", 0o600, True, "3")
    assert error_of("echo.py,mode=x") == (
        "echo.py: mode=x: mode must be a number, such as 4096, 0x1000 or 0o660"
    )
    assert error_of("echo.py,name=../x").startswith("echo.py: ")
    assert error_of("echo.py,sysfs=x").startswith("echo.py: Echo has no argument sysfs; ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("size=big", "kinds.py: size=big: size must be a number, such as 4096, 0x1000 or 0o660"),
        ("size=", "kinds.py: size=: size must be a number, such as 4096, 0x1000 or 0o660"),
        ("rate=x", "kinds.py: rate=x: rate must be a number, such as 0.5"),
        ("loud=maybe", "kinds.py: loud=maybe: loud must be true or false"),
        (
            "speed=1",
            "kinds.py: Kinds has no argument speed; "
            "it takes size, rate, loud, text, path, limit, most, other, name, mode, uid, gid, "
            "major, minor, max_read, max_write, seekable, unrestricted, subsystem, map_length",
        ),
    ],
)
def test_bad_arguments(directory: Path, arguments: str, message: str) -> None:
    write(directory, "kinds.py", KINDS)
    assert error_of(f"kinds.py:Kinds,{arguments}") == message


@pytest.mark.parametrize(
    ("init", "text", "message"),
    [
        ("self", "echo.py,a=1", "echo.py: Echo has no argument a; it takes name, mode, uid, gid,"),
        ("self, size, rate, n=0", "echo.py,n=1", "echo.py: Echo needs size=...,rate=... after a"),
    ],
)
def test_arguments_that_do_not_fit(directory: Path, init: str, text: str, message: str) -> None:
    body = f"def __init__({init}): pass\n    def open("
    write(directory, "echo.py", ECHO.replace("def open(", body))
    assert error_of(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone.py", "gone.py: no such file"),
        (".", ".: no such module"),
        ("echo-device", "echo-device: no such module"),
        ("./", "./: is a directory: name a file"),
        (
            "fs.py",
            "fs.py: is a filesystem, not a device: use `recuse mount fs.py DIR`",
        ),
        (
            "fs.py:Hello",
            "fs.py:Hello: is a filesystem, not a device: use `recuse mount fs.py:Hello DIR`",
        ),
        (
            "made.py",
            "made.py: is a filesystem, not a device: use `recuse mount made.py DIR`",
        ),
        ("imports.py", "imports.py: has no device class"),
        ("no_such_module:Echo", "no_such_module: no such module (to name a file, write FILE.py)"),
        ("no_such.module:Echo", "no_such.module: no such module"),
        ("json.no_such:Echo", "json.no_such: no such module"),
        ("echo.py:Ecko", "echo.py: has no class Ecko; choose Echo"),
        (
            "echo.py:EchoFile",
            "echo.py: EchoFile is not a subclass of recuse.Device; choose Echo",
        ),
        (
            "kinds.py",
            "kinds.py: has several device classes: choose kinds.py:Echo or kinds.py:Kinds",
        ),
        ("kinds.py:Gone", "kinds.py: has no class Gone; choose Echo or Kinds"),
        ("none.py", "none.py: has no device class (a subclass of recuse.Device)"),
        ("none.py:x", "none.py: x is not a subclass of recuse.Device"),
    ],
)
def test_what_cannot_be_loaded(directory: Path, text: str, message: str) -> None:
    write(directory, "echo.py", ECHO)
    write(directory, "kinds.py", KINDS)
    write(directory, "none.py", "from recuse.server.device import Device\nx = 1\n")
    write(directory, "imports.py", "from recuse import Filesystem\n")
    write(directory, "fs.py", "import recuse\nclass Hello(recuse.Filesystem):\n    pass\n")
    write(directory, "made.py", "import recuse\none = recuse.Filesystem(recuse.Directory())\n")
    assert error_of(text).startswith(message)


BROKEN = [
    ("import no_such_thing_xyz", ":2: ModuleNotFoundError: No module named 'no_such_thing_xyz'"),
    ("raise OSError(5, 'bad')", ":2: OSError: [Errno 5] bad"),
    ("raise SystemExit", ":2: SystemExit"),
    ("def f():\n  int('x')\nf()", ":3: ValueError: invalid literal for int() with base 10: 'x'"),
    ("class Echo(:", ":2: SyntaxError: invalid syntax"),
    ("import json\njson.loads('{')", ":3: JSONDecodeError: Expecting property name enclosed in"),
]


@pytest.mark.parametrize(("source", "message"), BROKEN)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_broken_file(directory: Path, source: str, message: str, as_module: bool) -> None:
    name = f"broken_in_a_test_{next(_numbers)}"
    write(directory, f"{name}.py", f"# a comment\n{source}\n")
    if as_module:
        assert error_of(name).startswith(f"{directory}/{name}.py{message}")
    else:
        assert error_of(f"{name}.py").startswith(f"{name}.py{message}")
        # It is not half there the second time.
        assert error_of(f"{name}.py").startswith(f"{name}.py{message}")


def test_a_syntax_error_beside_the_file_is_shown_there(directory: Path) -> None:
    write(directory, "half_a_test.py", "x =\n")
    write(directory, "echo.py", "import half_a_test\n" + ECHO)
    assert error_of("echo.py") == f"{directory}/half_a_test.py:1: SyntaxError: invalid syntax"


def test_a_constructor_that_fails(directory: Path) -> None:
    init = "def __init__(self, size: int):\n        raise KeyError(size)\n    def open("
    write(directory, "echo.py", ECHO.replace("def open(", init))
    assert error_of("echo.py,size=3") == "echo.py:7: KeyError: 3"


def test_a_constructor_that_refuses_its_arguments(directory: Path) -> None:
    init = (
        "def __init__(self, size: int):\n        raise ArgumentError('a size of 3')\n    def open("
    )
    text = "from recuse import ArgumentError\n" + ECHO.replace("def open(", init)
    write(directory, "echo.py", text)
    assert error_of("echo.py,size=3") == "echo.py: a size of 3"


def test_a_file_that_an_argument_names(directory: Path) -> None:
    init = "def __init__(self, path='/none'):\n        open(path)\n    def open("
    write(directory, "echo.py", ECHO.replace("def open(", init))
    assert error_of("echo.py,path=/nothing/there") == (
        "echo.py: /nothing/there: No such file or directory"
    )
    assert error_of("echo.py").startswith("echo.py:7: FileNotFoundError: ")


@pytest.mark.parametrize("name", ["", "/dev/echo", "a/../b", "x" * 65, "a\tb"])
@pytest.mark.parametrize("constructor", ["", "def __init__(self): pass\n    "])
def test_bad_names(directory: Path, name: str, constructor: str) -> None:
    text = ECHO.replace('"echo"', repr(name)).replace("def open", constructor + "def open")
    write(directory, "echo.py", text)
    message = error_of("echo.py")
    assert message.startswith("echo.py: ")
    assert "Echo.name is " in message
    assert "\n" not in message
