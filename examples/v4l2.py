"""Declaring the handlers of a Video4Linux device; numbers and structures are linuxpy's."""

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from linuxpy.video import raw

from recuse import File, ioctl

Handler = TypeVar("Handler", bound=Callable[..., Any])

VIDEO_MAJOR = 81


def handles(command: raw.IOC, type_: Any) -> Callable[[Handler], Handler]:
    """Decorate the handler of one of the commands; ``type_`` is what its argument points to."""
    # linuxpy's numbers are those of a C int, so some are negative.
    decorator: Callable[[Handler], Handler] = ioctl(int(command.value) & 0xFFFFFFFF, type_)
    return decorator


def invalid(message: str) -> OSError:
    """EINVAL."""
    return OSError(errno.EINVAL, message)


def busy(message: str) -> OSError:
    """EBUSY."""
    return OSError(errno.EBUSY, message)


def is_capture(type_: int) -> None:
    """Raise EINVAL for another kind of stream than a camera's."""
    if type_ != raw.BufType.VIDEO_CAPTURE:
        raise invalid("no such stream")


class Prioritised(File):
    """A file that may be kept from changing things by one of a higher priority.

    As in drivers/media/v4l2-core/v4l2-dev.c (v4l2_prio_check), Linux 6.1.
    """

    opened: "set[Prioritised]"
    """All files of the device."""
    priority = raw.Priority.INTERACTIVE

    def may_change(self) -> None:
        """Raise EBUSY if there is a file of a higher priority."""
        if any(file.priority > self.priority for file in self.opened):
            raise busy("another one has priority")

    @handles(raw.IOC.G_PRIORITY, raw.u32)
    async def g_priority(self) -> int:
        return int(max(file.priority for file in self.opened))

    @handles(raw.IOC.S_PRIORITY, raw.u32)
    async def s_priority(self, priority: int) -> None:
        self.may_change()
        if not raw.Priority.BACKGROUND <= priority <= raw.Priority.RECORD:
            raise invalid("no such priority")
        self.priority = raw.Priority(priority)
