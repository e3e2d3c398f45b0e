"""Classes made from their fields, like the standard library's dataclasses, but faster to make.

Importing dataclasses takes 5 ms, mostly for inspect. Making one takes 0.5 ms, as it is compiled in
four pieces. That is too long for work that is done before each program starts. Here a class's
methods are compiled when the first object is made.

Named tuples are here too, for the same reason.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

T = TypeVar("T")


class _Factory:
    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], T]) -> T:
    """For a field's default: calls the factory anew for each object."""
    default: Any = _Factory(default_factory)
    return default  # type: ignore[no-any-return]


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a declaration into a class with a slot for each annotation.

    It has a constructor that takes the fields in order or by name, and __repr__. Two objects are
    never equal. For things that are equal and do not change, there is NamedTuple.
    """
    names = tuple(cls.__annotations__)
    own = dict(vars(cls))
    for name in ("__dict__", "__weakref__"):
        own.pop(name, None)
    defaults = {name: own.pop(name) for name in names if name in own}

    def first(self: Any, *values: Any, **named: Any) -> None:
        _write_methods(made, names, defaults)
        made.__init__(self, *values, **named)

    made: Any = type(cls.__name__, cls.__bases__, {"__init__": first, **own, "__slots__": names})
    return made  # type: ignore[no-any-return]


def _write_methods(cls: Any, names: tuple[str, ...], defaults: dict[str, Any]) -> None:
    space: dict[str, Any] = {"absent": object()}
    parameters: list[str] = []
    setting: list[str] = []
    for name in names:
        value = name
        if name not in defaults:
            parameters.append(name)
        elif isinstance(default := defaults[name], _Factory):
            space[f"make_{name}"] = default.make
            parameters.append(f"{name}=absent")
            value = f"make_{name}() if {name} is absent else {name}"
        else:
            space[f"default_{name}"] = default
            parameters.append(f"{name}=default_{name}")
        setting.append(f"    self.{name} = {value}")
    shown = ", ".join(f"{name}={{self.{name}!r}}" for name in names)
    source = f"""\
def __init__(self, {", ".join(parameters)}):
{chr(10).join(setting)}

def __repr__(self):
    return f"{cls.__qualname__}({shown})"
"""
    exec(source, space)
    # The constructor comes last, as another thread may make an object meanwhile.
    cls.__repr__ = space["__repr__"]
    cls.__init__ = space["__init__"]


if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414 - for others to import
else:

    class _NamedTupleType(type):
        def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> type:
            fields = space.pop("__annotations__", ())
            defaults = [space.pop(field) for field in fields if field in space]
            made = namedtuple(name, fields, defaults=defaults, module=space["__module__"])
            for key, value in space.items():
                if key not in {"__module__", "__qualname__"}:
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_NamedTupleType, "NamedTuple", (), {})
    """The same as `typing.NamedTuple`, which takes three times as long to make a class: it compiles
    each annotation."""
