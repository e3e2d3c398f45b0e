"""Declaration of the protocol's structures: one declaration is codec, layout and field list.

    @structure
    class fuse_out_header(Structure):
        len: u32 = 0
        error: s32 = 0
        unique: u64 = 0

makes a dataclass with slots whose fields have the offsets that a C compiler gives them, in the
machine's byte order.  The protocol's padding is made of fields, so the codecs are struct's "="
formats, which add none; a test compares them with the C header.

Not frozen: constructing a frozen dataclass with slots costs about four times as much, and one is
constructed for each message.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import get_annotations
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
    """How an annotation is laid out: a number, or an array of them (a tuple in Python)."""

    name: str
    code: str
    length: int | None = None


u16 = Annotated[int, Layout("u16", "H")]
u32 = Annotated[int, Layout("u32", "I")]
u64 = Annotated[int, Layout("u64", "Q")]
s32 = Annotated[int, Layout("s32", "i")]
s64 = Annotated[int, Layout("s64", "q")]

# Arrays: reserved space, all of it.
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
    """What all structures of the protocol can do; the methods are filled in by `structure`."""

    __slots__ = ()

    SIZE: ClassVar[int]
    """Length in bytes."""
    CODEC: ClassVar[struct.Struct]
    """All numbers in order, those of inner structures and arrays in their places."""
    FIELDS: ClassVar[tuple[Field, ...]]

    def pack(self) -> bytes:
        """Return the SIZE bytes of this structure.

        Raises WireError if a value does not fit its field.
        """
        raise NotImplementedError

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Return the structure at ``offset`` in ``buffer``; what follows it is not looked at.

        Raises WireError if fewer than SIZE bytes are there.
        """
        raise NotImplementedError


S = TypeVar("S", bound=Structure)


@dataclass_transform(field_specifiers=(field,))
def structure(cls: type[S]) -> type[S]:
    """Make a declaration into a dataclass with slots, SIZE, CODEC, FIELDS, pack and unpack."""
    made = dataclass(slots=True)(cls)
    fields: list[Field] = []
    code = "="
    for name, hint in get_annotations(made).items():
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
    for name, method in _methods(made).items():
        setattr(made, name, method)
    return made


def _methods(cls: type[Structure]) -> dict[str, Any]:
    """Write pack and unpack for ``cls``.

    The source text names each attribute: packing a header takes 90 ns so, and 240 ns by way of
    operator.attrgetter.  Inner structures and arrays are made of slices of the unpacked numbers.
    """
    names: dict[str, Any] = {
        "made": cls,
        "codec_pack": cls.CODEC.pack,
        "codec_unpack": cls.CODEC.unpack_from,
        "struct_error": struct.error,
        "WireError": WireError,
    }

    def arguments(
        owner: type[Structure], path: str, start: int
    ) -> tuple[list[str], list[str], int]:
        """Return those of CODEC.pack, those of the constructor, and how far these read ``v``."""
        packing, making = [], []
        plain, end = True, start
        for name, hint in get_annotations(owner).items():
            value = f"{path}.{name}"
            if isinstance(hint, type):
                names[hint.__name__] = hint
                inner_packing, inner_making, end = arguments(hint, value, end)
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

    packing, making, count = arguments(cls, "self", 0)
    if making == [f"*v[0:{count}]"]:
        making = ["*v"]
    source = f"""\
def pack(self):
    try:
        return codec_pack({", ".join(packing)})
    except struct_error as error:
        raise WireError(f"{{self!r}}: {{error}}") from None

def unpack(buffer, offset=0):
    try:
        v = codec_unpack(buffer, offset)
    except struct_error:
        raise WireError(
            f"{cls.__name__} takes {cls.SIZE} bytes, but {{len(buffer) - offset}} are there"
        ) from None
    return made({", ".join(making)})
"""
    exec(source, names)
    methods: dict[str, Callable[..., Any]] = {"pack": names["pack"], "unpack": names["unpack"]}
    for name, method in methods.items():
        method.__doc__ = getattr(Structure, name).__doc__
        method.__qualname__ = f"{cls.__qualname__}.{name}"
    return {"pack": methods["pack"], "unpack": staticmethod(methods["unpack"])}
