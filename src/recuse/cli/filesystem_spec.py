"""What the SPEC of `recuse mount` or of -m means: a class of filesystems, or a module's filesystem.

It is written as a device's (`recuse.cli.spec`).
"""

import typing
from types import ModuleType

from recuse.cli.spec import (
    Kind,
    Spec,
    SpecError,
    choose_class,
    convert_arguments,
    load_module,
    parse,
    refusal,
)
from recuse.server.device import Device
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.inodes import Inodes
from recuse.server.filesystem.nodes import Directory
from recuse.server.filesystem.served import Served

if typing.TYPE_CHECKING:
    from inspect import Parameter

_PLAIN = (str, int, float, bool)


class _FilesystemKind(Kind):
    @property
    def named(self) -> str:
        return "recuse.Filesystem or recuse.Inodes"

    @property
    def common(self) -> "dict[str, Parameter]":
        """What the base class declares, as far as it can be written as text."""
        from inspect import Parameter

        hints = typing.get_type_hints(self.base, localns={"Directory": object})
        return {
            name: Parameter(name, Parameter.KEYWORD_ONLY, annotation=hint)
            for name, hint in hints.items()
            if hint in _PLAIN and not name.startswith("_")
        }


_FILESYSTEM = _FilesystemKind(Served, "filesystem")


def _kind_of(cls: type) -> Kind:
    base = Inodes if issubclass(cls, Inodes) else Filesystem
    return _FilesystemKind(base, _FILESYSTEM.word)


def load_filesystem(text: str) -> Served:
    """Import what a SPEC names, and make the filesystem, unless the module has.

    Raises:
        SpecError: with a message for the user.
    """
    spec = parse(text)
    module = load_module(spec)
    filesystem = _instance(spec, module)
    if filesystem is None:
        cls = choose_class(spec, module, _FILESYSTEM)
        arguments, attributes = convert_arguments(spec, cls, _kind_of(cls))
        try:
            made = cls(**arguments)
        except Exception as error:
            raise SpecError(refusal(error, spec, module)) from error
        filesystem = typing.cast(Served, made)
    else:
        attributes = _attributes(spec, filesystem)
    for name, value in attributes.items():
        setattr(filesystem, name, value)
    root = getattr(filesystem, "root", None)
    if isinstance(filesystem, Filesystem) and not isinstance(root, Directory):
        raise SpecError(f"{spec.source}: {type(filesystem).__name__} has no root: a Directory")
    return filesystem


def is_filesystem(text: str) -> bool:
    """Whether a SPEC that may be a device's or a filesystem's is a filesystem's.

    Raises:
        SpecError: it may be either; or its module cannot be imported.
    """
    spec = parse(text)
    module = load_module(spec)
    if spec.class_name is not None:
        named = getattr(module, spec.class_name, None)
        return isinstance(named, Served) or (isinstance(named, type) and issubclass(named, Served))
    kinds: dict[bool, str] = {}
    for name, value in vars(module).items():
        own = isinstance(value, type) and value.__module__ == module.__name__
        if isinstance(value, Served) or (own and issubclass(value, (Device, Served))):
            kinds.setdefault(not (own and issubclass(value, Device)), name)
    if len(kinds) > 1:
        raise SpecError(
            f"{spec.source}: has devices and filesystems: choose one, such as "
            f"{spec.source}:{kinds[False]} or {spec.source}:{kinds[True]}"
        )
    return True in kinds


def _instance(spec: Spec, module: ModuleType) -> Served | None:
    """The filesystem that is named, or the only one that the module has made."""
    if spec.class_name is not None:
        named = getattr(module, spec.class_name, None)
        return named if isinstance(named, Served) else None
    made = {
        id(value): (name, value)
        for name, value in vars(module).items()
        if isinstance(value, Served)
    }
    if len(made) > 1:
        options = " or ".join(f"{spec.source}:{name}" for name, _ in made.values())
        raise SpecError(f"{spec.source}: has several filesystems: choose {options}")
    return next((value for _, value in made.values()), None)


def _attributes(spec: Spec, filesystem: Served) -> dict[str, object]:
    """What to set on a filesystem that is made already."""
    kind = _kind_of(type(filesystem))
    known = kind.common
    for key in spec.arguments:
        if key not in known:
            raise SpecError(
                f"{spec.source}: {type(filesystem).__name__} is made already; what can be set is "
                + ", ".join(known)
            )
    return convert_arguments(spec, kind.base, kind)[1]
