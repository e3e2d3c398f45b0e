"""Records: classes that are their fields."""

import pickle
import threading
import typing
from typing import Any

import pytest

from recuse.runtime.records import NamedTuple, field, record


def make() -> Any:
    """A class of which there is no object yet."""

    @record
    class Point:
        """What it is."""

        x: int
        y: int = 2
        names: list[str] = field(default_factory=list)

        def sum(self) -> int:
            return self.x + self.y

    return Point


def test_fields_are_given_in_order_or_by_name() -> None:
    point = make()(1, names=["a"])
    assert (point.x, point.y, point.names, point.sum()) == (1, 2, ["a"], 3)
    assert repr(point) == f"{type(point).__qualname__}(x=1, y=2, names=['a'])"
    point.y = 5
    assert point.sum() == 6
    assert type(point).__doc__ == "What it is."


def test_what_a_factory_makes_is_not_shared() -> None:
    made = make()
    first, second = made(1), made(1)
    first.names.append("a")
    assert second.names == []
    assert first != second


@pytest.mark.parametrize("fields", [{}, {"x": 1, "z": 2}, {"x": 1, "y": 2, "names": [], "w": 3}])
def test_other_fields_are_refused(fields: dict[str, Any]) -> None:
    made = make()
    for _ in range(2):
        with pytest.raises(TypeError):
            made(**fields)
    with pytest.raises(AttributeError):
        made(1).other = 1


def test_several_threads_may_make_the_first() -> None:
    made, found = make(), []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        found.append(made(1).sum())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 8


class Place(NamedTuple):
    """Where it is."""

    row: int
    column: int = 7
    """Counted from the left."""
    undefined: "NotThere | None" = None  # type: ignore[name-defined]  # noqa: F821 - not evaluated

    @property
    def sum(self) -> int:
        return self.row + self.column

    @classmethod
    def first(cls) -> "Place":
        return cls(0, 0)

    def __str__(self) -> str:
        return f"{self.row}:{self.column}"


class SamePlace(typing.NamedTuple):
    row: int
    column: int = 7
    undefined: Any = None


def test_a_named_tuple_is_as_the_standard_librarys() -> None:
    place, same = Place(1), SamePlace(1)
    assert isinstance(place, tuple)
    assert tuple(place) == tuple(same)
    assert hash(place) == hash(same)
    assert place._fields == same._fields
    assert place._field_defaults == same._field_defaults
    assert repr(place) == repr(same).replace("SamePlace", "Place")
    assert tuple(place._replace(row=2)) == (2, 7, None)
    assert pickle.loads(pickle.dumps(place)) == place
    assert (Place.__module__, Place.__doc__) == (__name__, "Where it is.")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'row'"):
        Place()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        place.other = 1  # type: ignore[attr-defined]


def test_a_named_tuple_has_methods_of_its_own() -> None:
    assert (Place(1, 2).sum, Place.first().row, str(Place(1))) == (3, 0, "1:7")
