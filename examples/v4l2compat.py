"""Video4Linux's structures in 32-bit programs (i386).

There, pointers and longs have 4 bytes, and nothing is aligned to more than 4.  Times have seconds
of 4 bytes or, in newer programs (_TIME_BITS=64), of 8.  If a structure has another size, its
command has another number.  So the number says which layout a program has.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

_LONGS = {"secs", "usecs", "nsecs"}
_ADDRESSES = {"userptr"}
"""Fields that are long in C; ctypes cannot tell these from 64-bit numbers."""
_ALIGNMENT = 4


def layouts(type_: Any) -> Iterator[Any]:
    """Yield a structure's layouts in 32-bit programs, if they have another size."""
    sizes = {ctypes.sizeof(type_)}
    for long in (ctypes.c_int32, ctypes.c_int64):
        narrow = _narrow(type_, long)
        if ctypes.sizeof(narrow) not in sizes:
            sizes.add(ctypes.sizeof(narrow))
            yield narrow


def _narrow(type_: Any, time: Any) -> Any:
    if hasattr(type_, "contents"):  # a pointer
        return ctypes.c_uint32
    if issubclass(type_, ctypes.Array):
        return _narrow(type_._type_, time) * type_._length_
    if not issubclass(type_, ctypes.Structure | ctypes.Union):
        return type_
    fields = []
    for name, of in type_._fields_:
        if name in _LONGS:
            fields.append((name, time))
        else:
            fields.append((name, ctypes.c_uint32 if name in _ADDRESSES else _narrow(of, time)))
    kind = ctypes.Structure if issubclass(type_, ctypes.Structure) else ctypes.Union
    pack = min(getattr(type_, "_pack_", _ALIGNMENT), _ALIGNMENT)
    return type(type_.__name__, (kind,), {"_pack_": pack, "_layout_": "ms", "_fields_": fields})


def copy(source: Any, target: Any) -> None:
    """Copy a structure into one of another layout.

    Numbers are cut off or padded with zeros (x86 stores their lowest bytes first).  So are unions:
    those of V4L2 with pointers have only zeros after them.
    """
    for name, *_ in source._fields_:
        place, other = getattr(type(source), name), getattr(type(target), name)
        value = getattr(source, name)
        if isinstance(value, ctypes.Structure):
            copy(value, getattr(target, name))
        else:
            ctypes.memmove(
                ctypes.addressof(target) + other.offset,
                ctypes.addressof(source) + place.offset,
                min(place.size, other.size),
            )
