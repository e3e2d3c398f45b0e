"""Declaration of the protocol's structures: one declaration is codec, layout and field list.

    @structure
    class fuse_out_header(Structure):
        len: u32 = 0
        error: s32 = 0
        unique: u64 = 0

makes something like a dataclass with slots. Its fields have the offsets that a C compiler gives
them, in the machine's byte order. The protocol's padding is made of fields, so the codecs are
struct's "=" formats, which add none. A test compares them with the C header.

The standard library's dataclasses take 0.3 ms each, and 5 ms to import, before any program starts.
So all methods are written here, in one piece, when the first is called.

They are not frozen. Constructing a frozen dataclass with slots costs about four times as much, and
one is constructed for each message.
"""

import struct
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Self,
    TypeVar,
    dataclass_transform,
)

from recuse.wire.errors import WireError

Buffer = bytes | bytearray | memoryview


class Layout(NamedTuple):
    """The layout of an annotation: a number, or an array of numbers (a tuple in Python)."""

    name: str
    code: str
    length: int | None = None


u16 = Annotated[int, Layout("u16", "H")]
u32 = Annotated[int, Layout("u32", "I")]
u64 = Annotated[int, Layout("u64", "Q")]
s32 = Annotated[int, Layout("s32", "i")]
s64 = Annotated[int, Layout("s64", "q")]

# Arrays: all of them are reserved space.
u8x6 = Annotated[tuple[int, ...], Layout("u8", "B", 6)]
u16x1 = Annotated[tuple[int, ...], Layout("u16", "H", 1)]
u16x11 = Annotated[tuple[int, ...], Layout("u16", "H", 11)]
u32x6 = Annotated[tuple[int, ...], Layout("u32", "I", 6)]
u32x10 = Annotated[tuple[int, ...], Layout("u32", "I", 10)]
u32x11 = Annotated[tuple[int, ...], Layout("u32", "I", 11)]
u64x2 = Annotated[tuple[int, ...], Layout("u64", "Q", 2)]
u64x14 = Annotated[tuple[int, ...], Layout("u64", "Q", 14)]


class Field(NamedTuple):
    """A field's name, its type as in the header ("u32", "u32[11]", "fuse_attr"), its offset."""

    name: str
    type: str
    offset: int


class Structure:
    """What all structures of the protocol can do.

    A class gets its own methods, including __repr__ and __eq__, when the first object is made.
    """

    __slots__ = ()

    SIZE: ClassVar[int]
    """Length in bytes."""
    CODEC: ClassVar[struct.Struct]
    """All numbers in order, including those of inner structures and arrays."""
    FIELDS: ClassVar[tuple[Field, ...]]

    def __init__(self, *values: Any, **named: Any) -> None:
        """Set the fields: ``values`` are in the order of declaration, and the rest is zero."""
        _write_methods(type(self))
        type(self).__init__(self, *values, **named)

    def pack(self) -> bytes:
        """Return the SIZE bytes of this structure.

        Raises WireError if a value does not fit its field.
        """
        raise NotImplementedError

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Return the structure at ``offset`` in ``buffer``; anything after it is ignored.

        Raises WireError if fewer than SIZE bytes are there.
        """
        _write_methods(cls)
        return cls.unpack(buffer, offset)


S = TypeVar("S", bound=Structure)


def field(*, default_factory: type[S]) -> S:
    """Declare a field that is itself a structure, by default all zero."""
    made: Any = default_factory
    return made  # type: ignore[no-any-return]


@dataclass_transform(field_specifiers=(field,))
def structure(cls: type[S]) -> type[S]:
    """Make a declaration into a class with slots, SIZE, CODEC, FIELDS, pack and unpack."""
    hints = cls.__annotations__
    own = {name: value for name, value in vars(cls).items() if name not in hints}
    for name in ("__dict__", "__weakref__"):
        own.pop(name, None)
    made: Any = type(cls.__name__, cls.__bases__, {**own, "__slots__": tuple(hints)})
    fields: list[Field] = []
    code = "="
    for name, hint in hints.items():
        offset = struct.calcsize(code)
        if isinstance(hint, type) and issubclass(hint, Structure):
            fields.append(Field(name, hint.__name__, offset))
            code += hint.CODEC.format[1:]
        else:
            layout: Layout = hint.__metadata__[0]
            suffix = "" if layout.length is None else f"[{layout.length}]"
            fields.append(Field(name, layout.name + suffix, offset))
            code += f"{layout.length or ''}{layout.code}"
    made.FIELDS = tuple(fields)
    made.CODEC = struct.Struct(code)
    made.SIZE = made.CODEC.size
    return made  # type: ignore[no-any-return]


_METHODS = """\
def __init__(self, {parameters}):
    {setting}

def __repr__(self):
    return f"{name}({shown})"

def __eq__(self, other):
    if other.__class__ is not self.__class__:
        return NotImplemented
    return ({values}) == ({others})

def pack(self):
    try:
        return codec_pack({packing})
    except struct_error as error:
        raise WireError(f"{{self!r}}: {{error}}") from None

def unpack(buffer, offset=0):
    try:
        v = codec_unpack(buffer, offset)
    except struct_error:
        raise WireError(
            f"{bare} takes {size} bytes, but {{len(buffer) - offset}} are there"
        ) from None
    return made({making})
"""


def _write_methods(cls: type[Structure]) -> None:
    """Give ``cls`` its own methods.

    The source text names each attribute. That way packing a header takes 90 ns, compared with
    240 ns with operator.attrgetter. Inner structures and arrays are made from slices of the
    unpacked numbers.
    """
    names: dict[str, Any] = {
        "made": cls,
        "codec_pack": cls.CODEC.pack,
        "codec_unpack": cls.CODEC.unpack_from,
        "struct_error": struct.error,
        "WireError": WireError,
    }
    packing, making, count = _arguments(cls, "self", 0, names)
    if making == [f"*v[0:{count}]"]:
        making = ["*v"]
    parameters: list[str] = []
    setting: list[str] = []
    for name, hint in cls.__annotations__.items():
        if isinstance(hint, type):
            parameters.append(f"{name}=None")
            setting.append(f"self.{name} = {hint.__name__}() if {name} is None else {name}")
        else:
            length = hint.__metadata__[0].length
            parameters.append(f"{name}=0" if length is None else f"{name}=(0,) * {length}")
            setting.append(f"self.{name} = {name}")
    values = "".join(f"self.{field.name}, " for field in cls.FIELDS)
    source = _METHODS.format(
        bare=cls.__name__,
        name=cls.__qualname__,
        size=cls.SIZE,
        parameters=", ".join(parameters),
        setting="; ".join(setting),
        shown=", ".join(f"{field.name}={{self.{field.name}!r}}" for field in cls.FIELDS),
        values=values,
        others=values.replace("self.", "other."),
        packing=", ".join(packing),
        making=", ".join(making),
    )
    exec(source, names)
    names["unpack"] = staticmethod(names["unpack"])
    # The methods that make an object come last, as another thread may make one meanwhile.
    for name in ("pack", "__repr__", "__eq__", "__init__", "unpack"):
        setattr(cls, name, names[name])


def _arguments(
    owner: type[Structure], path: str, start: int, names: dict[str, Any]
) -> tuple[list[str], list[str], int]:
    """Return the arguments of CODEC.pack, those of the constructor, and how far these read ``v``.

    The classes of inner structures are added to ``names``.
    """
    packing, making = [], []
    plain, end = True, start
    for name, hint in owner.__annotations__.items():
        value = f"{path}.{name}"
        if isinstance(hint, type):
            names[hint.__name__] = hint
            inner_packing, inner_making, end = _arguments(hint, value, end, names)
            packing += inner_packing
            making.append(f"{hint.__name__}({', '.join(inner_making)})")
            plain = False
        elif (length := hint.__metadata__[0].length) is None:
            packing.append(value)
            making.append(f"v[{end}]")
            end += 1
        else:
            packing.append(f"*{value}")
            making.append(f"v[{end}:{end + length}]")
            end += length
            plain = False
    return packing, [f"*v[{start}:{end}]"] if plain else making, end
