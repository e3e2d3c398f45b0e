"""Several methods of an author's for one request, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[Callable[[], Any], Any, T]
"""Yields calls of methods, which may be ``async def``. Each yield returns what the method returned,
or raises what it raised."""


def run_steps(steps: Steps[T]) -> T | Awaitable[T]:
    """Run them to their end; from the first method that is ``async def``, that is to be awaited.

    Raises what the steps raise.
    """
    outcome = _go_on(steps, lambda: next(steps))
    return outcome[0] if isinstance(outcome, tuple) else _await(steps, outcome)


def _go_on(steps: Steps[T], resume: Callable[[], Callable[[], Any]]) -> tuple[T] | Awaitable[Any]:
    """Run plain methods; return the result in a tuple, or else what has to be awaited first."""
    while True:
        try:
            call = resume()
        except StopIteration as end:
            return (end.value,)
        try:
            returned = call()
        except BaseException as error:
            resume = _raising(steps, error)
            continue
        if hasattr(returned, "__await__"):
            awaitable: Awaitable[Any] = returned
            return awaitable
        resume = _returning(steps, returned)


async def _await(steps: Steps[T], awaitable: Awaitable[Any]) -> T:
    while True:
        try:
            resume = _returning(steps, await awaitable)
        except BaseException as error:
            resume = _raising(steps, error)
        outcome = _go_on(steps, resume)
        if isinstance(outcome, tuple):
            return outcome[0]
        awaitable = outcome


def _returning(steps: Steps[T], returned: Any) -> Callable[[], Callable[[], Any]]:
    return lambda: steps.send(returned)


def _raising(steps: Steps[T], error: BaseException) -> Callable[[], Callable[[], Any]]:
    return lambda: steps.throw(error)
