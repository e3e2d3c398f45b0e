"""What `-d` means: from `examples/memory.py:Memory,size=0x1000` to a device.

Somebody who sees these errors has just written the file or the option. So each error names the
place and says what would be right there.
"""

import importlib
import importlib.util
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recuse.runtime.records import NamedTuple
from recuse.server.device import Device, check_device
from recuse.server.errors import ArgumentError

if TYPE_CHECKING:
    import inspect

REMOTE = "unix:"
"""The prefix of a socket's path, where another process serves the device."""


class SpecError(Exception):
    """A device cannot be created; the message is one line that says why."""


class Spec(NamedTuple):
    """A `-d` option, taken apart."""

    source: str
    """A file's path, or a module's dotted name."""
    class_name: str | None
    arguments: dict[str, str]

    @property
    def is_file(self) -> bool:
        """Whether the source is a file's path."""
        return self.source.endswith(".py") or os.sep in self.source


def is_remote(text: str) -> bool:
    """Whether a `-d` option names a server's socket rather than a class."""
    return text.startswith(REMOTE)


def parse_remote(text: str) -> str:
    """The path in unix:PATH, which may have commas and colons.

    Raises:
        SpecError: the path is empty.
    """
    path = text.removeprefix(REMOTE)
    if not path:
        raise SpecError(f"{text}: add the path that `recuse serve` printed, after the colon")
    return path


def parse(text: str) -> Spec:
    """Take a `-d` option apart.

    Raises:
        SpecError: it is not of the form SOURCE[:CLASS][,KEY=VALUE]...
    """
    head, *pairs = text.split(",")
    arguments: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise SpecError(f"{text}: a comma must be followed by KEY=VALUE, not {pair!r}")
        if key in arguments:
            raise SpecError(f"{text}: {key} is given twice")
        arguments[key] = value
    source, class_name = head, None
    if ":" in os.path.basename(head):
        source, _, class_name = head.rpartition(":")
        if not class_name.isidentifier():
            raise SpecError(f"{text}: the colon must be followed by the name of a class")
    if not source:
        raise SpecError(f"{text!r}: name a device by FILE.py, FILE.py:CLASS or MODULE:CLASS")
    return Spec(source, class_name, arguments)


def load(spec: Spec) -> Device:
    """Import what `spec` names and create the device.

    Raises:
        SpecError: with a message for the user.
    """
    module = load_module(spec)
    cls = choose_class(spec, module, DEVICE)
    arguments, attributes = convert_arguments(spec, cls, DEVICE)
    make: Callable[..., Device] = cls
    try:
        device = make(**arguments)
    except Exception as error:
        raise SpecError(refusal(error, spec, module)) from error
    for name, value in attributes.items():
        setattr(device, name, value)
    try:
        # A constructor of its own may have set anything.
        check_device(device)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec.source}: {error}") from error
    return device


class Kind(NamedTuple):
    """What a spec may name."""

    base: type
    word: str
    """For one of them."""

    @property
    def named(self) -> str:
        """The base classes, in messages."""
        return f"recuse.{self.base.__name__}"

    @property
    def common(self) -> "dict[str, inspect.Parameter]":
        """The attributes that each has, and that a spec may set."""
        import inspect

        return _keywords(inspect.signature(self.base).parameters)


DEVICE = Kind(Device, "device")


# ---- modules


def load_module(spec: Spec) -> ModuleType:
    """Import the module that `spec` names.

    Raises:
        SpecError: with a message for the user.
    """
    return _load_file(spec.source) if spec.is_file else _load_module(spec.source)


def _load_file(path: str) -> ModuleType:
    """Import a file by its path, once for all the options that name it."""
    if not os.path.isfile(path):
        is_directory = os.path.isdir(path)
        raise SpecError(
            f"{path}: {'is a directory: name a file' if is_directory else 'no such file'}"
        )
    full_path = os.path.realpath(path)
    # Not its bare name: echo.py in two directories are two modules, and neither is to be taken
    # for a module of the same name elsewhere.
    name = f"device file {full_path}"
    if name in sys.modules:
        return sys.modules[name]
    # As for a script that Python runs: what lies beside it can be imported.
    _search(os.path.dirname(full_path))
    module_spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, full_path))
    assert module_spec is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)  # type: ignore[union-attr]
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SpecError(locate(error, full_path, path)) from error
    return module


def _load_module(name: str) -> ModuleType:
    """Import a module by its name; as with `python -m`, from the working directory too."""
    _search(os.getcwd())
    origin = None
    try:
        named = all(part.isidentifier() for part in name.split("."))
        found = importlib.util.find_spec(name) if named else None
        if found is not None:
            origin = found.origin
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that the named one imports, rather than itself or its package.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise SpecError(locate(error, origin, origin or name)) from error
    except (Exception, SystemExit) as error:
        raise SpecError(locate(error, origin, origin or name)) from error
    raise SpecError(f"{name}: no such module (to name a file, write FILE.py)")


def _search(directory: str) -> None:
    if directory not in sys.path:
        sys.path.insert(0, directory)


def refusal(error: Exception, spec: Spec, module: ModuleType) -> str:
    """Why a constructor failed, in one line: of a file that an argument names, what is wrong there.

    Otherwise as `locate` says.
    """
    if isinstance(error, OSError) and str(error.filename) in spec.arguments.values():
        return f"{spec.source}: {error.filename}: {error.strerror}"
    return locate(error, module.__file__, spec.source)


def locate(error: BaseException, path: str | None, shown: str) -> str:
    """An exception in one line, with the last line of the file at `path` that led to it.

    Of an `ArgumentError`, the text alone: no line of the source is to be mended.
    """
    if isinstance(error, ArgumentError):
        return f"{shown}: {error}"
    line = 0
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    if isinstance(error, SyntaxError) and error.lineno:
        shown = shown if error.filename == path else error.filename or shown
        line, text = error.lineno, error.msg
    else:
        text = str(error)
    place = f"{shown}:{line}" if line else shown
    name = type(error).__name__
    return f"{place}: {name}: {text}" if text else f"{place}: {name}"


# ---- classes


def choose_class(spec: Spec, module: ModuleType, kind: Kind) -> type[Any]:
    """Return the class that `spec` names, or the only one of its kind.

    Raises:
        SpecError: with a message for the user.
    """
    # Those that are defined here, not imported; in the file's order, an alias only once.
    choices = dict.fromkeys(
        value.__name__
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, kind.base)
        and value.__module__ == module.__name__
    )
    name = spec.class_name
    if name is None:
        if not choices:
            _check_other_kind(
                spec,
                kind,
                (
                    value
                    for value in vars(module).values()
                    if not isinstance(value, type) or value.__module__ == module.__name__
                ),
            )
            raise SpecError(f"{spec.source}: has no {kind.word} class (a subclass of {kind.named})")
        if len(choices) > 1:
            options = _one_of(f"{spec.source}:{choice}" for choice in choices)
            raise SpecError(f"{spec.source}: has several {kind.word} classes: choose {options}")
        (name,) = choices
    value = getattr(module, name, None)
    if value is None:
        raise SpecError(f"{spec.source}: has no class {name}{_but(choices)}")
    if not (isinstance(value, type) and issubclass(value, kind.base)):
        _check_other_kind(spec, kind, [value])
        raise SpecError(f"{spec.source}: {name} is not a subclass of {kind.named}{_but(choices)}")
    return value


def _check_other_kind(spec: Spec, kind: Kind, values: Iterable[object]) -> None:
    """Raise SpecError if one of what the spec may mean is for the other command."""
    from recuse.server.filesystem.served import Served

    other = Served if kind.base is Device else Device
    for value in values:
        if isinstance(value, other) or (isinstance(value, type) and issubclass(value, other)):
            named = spec.source if spec.class_name is None else f"{spec.source}:{spec.class_name}"
            raise SpecError(
                f"{named}: is a filesystem, not a device: use `recuse mount {named} DIR`"
                if other is Served
                else f"{named}: is a device, not a filesystem: use `recuse run -d {named} PROGRAM`"
            )


def _but(choices: Iterable[str]) -> str:
    """The classes to choose from, as the end of a sentence."""
    choices = list(choices)
    return f"; choose {_one_of(choices)}" if choices else ""


def _one_of(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


# ---- constructor arguments


def _boolean(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "on": True,
            "0": False, "false": False, "no": False, "off": False}[text.lower()]  # fmt: skip


_CONVERTERS: dict[type, tuple[Callable[[str], object], str]] = {
    int: (lambda text: int(text, 0), "a number, such as 4096, 0x1000 or 0o660"),
    float: (float, "a number, such as 0.5"),
    bool: (_boolean, "true or false"),
    str: (str, "text"),
}


def convert_arguments(
    spec: Spec, cls: type[Any], kind: Kind
) -> tuple[dict[str, object], dict[str, object]]:
    """Convert the arguments after the commas, each by its annotation.

    Returns:
        The arguments for the constructor; and attributes to set on the object, which any of its
        kind has (name, mode, ...) but which this class's constructor does not take.
    """
    if not spec.arguments and _needs_nothing(cls):
        return {}, {}
    import inspect

    parameters = inspect.signature(cls).parameters
    named = _keywords(parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    common = kind.common
    arguments: dict[str, object] = {}
    attributes: dict[str, object] = {}
    for key, text in spec.arguments.items():
        if key in named:
            arguments[key] = _convert(spec, key, text, named[key].annotation, cls)
        elif takes_any and (base := _base_that_takes(key, cls, kind)):
            arguments[key] = _convert(
                spec, key, text, inspect.signature(base).parameters[key].annotation, base
            )
        elif key in common:
            attributes[key] = _convert(spec, key, text, common[key].annotation, kind.base)
        elif takes_any:
            arguments[key] = text
        else:
            takes = ", ".join([*named, *(name for name in common if name not in named)])
            raise SpecError(
                f"{spec.source}: {cls.__name__} has no argument {key}; it takes {takes}"
            )
    lacking = [
        f"{name}=..."
        for name, parameter in named.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if lacking:
        raise SpecError(f"{spec.source}: {cls.__name__} needs {','.join(lacking)} after a comma")
    return arguments, attributes


def _needs_nothing(cls: type[Any]) -> bool:
    """Whether it is plain that the constructor needs no arguments; to import inspect takes long."""
    init, new = (getattr(cls, name) for name in ("__init__", "__new__"))
    code = getattr(init, "__code__", None)
    if type(cls) is not type or new is not object.__new__ or code is None:
        return False
    positional = code.co_argcount - 1 - len(init.__defaults__ or ())
    return bool(positional <= 0 and code.co_kwonlyargcount <= len(init.__kwdefaults__ or ()))


def _base_that_takes(key: str, cls: type[Any], kind: Kind) -> type[Any] | None:
    """The base class to whose constructor another one, with `**`, seems to pass an argument on."""
    from inspect import signature

    for base in cls.__mro__[1:]:
        takes = issubclass(base, kind.base) and "__init__" in vars(base)
        if takes and key in _keywords(signature(base).parameters):
            return base
    return None


def _keywords(parameters: Mapping[str, "inspect.Parameter"]) -> dict[str, "inspect.Parameter"]:
    """Those that can be given by name, except `Device.sysfs`, which cannot be written as text."""
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name != "sysfs"
    }


def _convert(spec: Spec, key: str, text: str, annotation: object, cls: type[Any]) -> object:
    converter, form = _convertible(annotation, cls)
    try:
        return converter(text)
    except (ValueError, KeyError):
        raise SpecError(f"{spec.source}: {key}={text}: {key} must be {form}") from None


def _convertible(annotation: object, cls: type[Any]) -> tuple[Callable[[str], object], str]:
    """The converter, and its form in words: of a union, the first known type; else text."""
    from pathlib import Path

    known = {**_CONVERTERS, Path: (Path, "a path")}
    if isinstance(annotation, str):
        # Each by itself: another one may name what only type checkers import.
        try:
            annotation = eval(annotation, getattr(cls.__init__, "__globals__", {}))
        except Exception:
            return known[str]
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for option in typing.get_args(annotation) if union else (annotation,):
        if isinstance(option, type) and option in known:
            return known[option]
    return known[str]
