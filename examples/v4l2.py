"""Declares the handlers of a Video4Linux device; numbers and structures are linuxpy's."""

import errno
import functools
from collections.abc import Callable
from ctypes import Structure, sizeof
from typing import Any, TypeVar

from linuxpy.video import raw
from v4l2compat import copy, layouts

from recuse import File, ioctl

Handler = TypeVar("Handler", bound=Callable[..., Any])

VIDEO_MAJOR = 81


def handles(command: raw.IOC, type_: Any) -> Callable[[Handler], Handler]:
    """Decorate the handler of a command; ``type_`` is the type that its argument points to.

    If the structure of 32-bit programs has another layout, the handler gets their command too.
    """
    # linuxpy's numbers are C ints, so some are negative.
    number = int(command.value) & 0xFFFFFFFF
    narrow = list(layouts(type_)) if issubclass(type_, Structure) else []

    def decorate(handler: Any) -> Any:
        answer = ioctl(number, type_)(_converting(handler, type_) if narrow else handler)
        for other in narrow:
            resized = number & ~(0x3FFF << 16) | sizeof(other) << 16
            answer = ioctl(resized, other)(answer)
        return answer

    return decorate


def _converting(handler: Any, type_: Any) -> Any:
    """Return a handler that also accepts and returns other layouts of a structure."""

    @functools.wraps(handler)
    async def answer(self: Any, asked: Any, **memory: Any) -> Any:
        if isinstance(asked, type_):
            return await handler(self, asked, **memory)
        native = type_()
        copy(asked, native)
        result = await handler(self, native, **memory)
        told = isinstance(result, type_)
        copy(result if told else native, asked)
        return 0 if told else result

    return answer


def invalid(message: str) -> OSError:
    """EINVAL."""
    return OSError(errno.EINVAL, message)


def busy(message: str) -> OSError:
    """EBUSY."""
    return OSError(errno.EBUSY, message)


def is_capture(type_: int) -> None:
    """Raise EINVAL if it is not a camera's kind of stream."""
    if type_ != raw.BufType.VIDEO_CAPTURE:
        raise invalid("no such stream")


class Prioritised(File):
    """A file that cannot change things while another file has a higher priority.

    As in drivers/media/v4l2-core/v4l2-dev.c (v4l2_prio_check), Linux 6.1.
    """

    opened: "set[Prioritised]"
    """All files of the device."""
    priority = raw.Priority.INTERACTIVE

    def may_change(self) -> None:
        """Raise EBUSY if another file has a higher priority."""
        if any(file.priority > self.priority for file in self.opened):
            raise busy("another program has priority")

    @handles(raw.IOC.G_PRIORITY, raw.u32)
    async def g_priority(self) -> int:
        return int(max(file.priority for file in self.opened))

    @handles(raw.IOC.S_PRIORITY, raw.u32)
    async def s_priority(self, priority: int) -> None:
        self.may_change()
        if not raw.Priority.BACKGROUND <= priority <= raw.Priority.RECORD:
            raise invalid("no such priority")
        self.priority = raw.Priority(priority)
