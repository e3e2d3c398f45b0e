"""Controls of a Video4Linux device, and the events that report their changes.

Errors are those of drivers/media/v4l2-core/v4l2-ctrls-api.c and v4l2-event.c, Linux 6.1.
"""

import asyncio
import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass

from linuxpy.video import raw
from v4l2 import Prioritised, handles, invalid

from recuse import Memory

_MAX_CONTROLS = 1024  # V4L2_CID_MAX_CTRLS
_NEXT = int(raw.ControlFlag.NEXT_CTRL)
_NEXT_ANY = _NEXT | int(raw.ControlFlag.NEXT_COMPOUND)
_CLASS_MASK = 0x0FFF0000


@dataclass
class Control:
    """A number that programs can change."""

    id: int
    name: str
    maximum: int
    default: int = 0
    minimum: int = 0
    type: int = raw.CtrlType.INTEGER
    menu: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.value = self.default

    @property
    def is_class(self) -> bool:
        """Whether it is the heading of the controls after it."""
        return bool(self.type == raw.CtrlType.CTRL_CLASS)

    @property
    def flags(self) -> int:
        if self.is_class:
            return int(raw.ControlFlag.READ_ONLY | raw.ControlFlag.WRITE_ONLY)
        return int(raw.ControlFlag.SLIDER) if self.type == raw.CtrlType.INTEGER else 0

    @property
    def step(self) -> int:
        return 0 if self.is_class else 1

    @property
    def described(self) -> tuple[int, int, bytes, int, int, int, int, int]:
        """The first fields of the structures of both queries."""
        limits = self.minimum, self.maximum, self.step, self.default
        return self.id, self.type, self.name.encode(), *limits, self.flags

    def fitting(self, value: int) -> int:
        """Return the nearest possible value; raises ERANGE if there is none."""
        if self.type == raw.CtrlType.BOOLEAN:
            return int(value != 0)
        if self.type == raw.CtrlType.MENU and not self.minimum <= value <= self.maximum:
            raise OSError(errno.ERANGE, "not in the menu")
        return min(max(value, self.minimum), self.maximum)


def heading(id_: int, name: str) -> Control:
    """Return a class of controls."""
    return Control(id_, name, 0, type=raw.CtrlType.CTRL_CLASS)


def switch(id_: int, name: str) -> Control:
    """Return a control that is on or off, initially off."""
    return Control(id_, name, 1, type=raw.CtrlType.BOOLEAN)


def menu(id_: int, name: str, items: Sequence[str]) -> Control:
    """Return a choice; the first item is the default."""
    return Control(id_, name, len(items) - 1, type=raw.CtrlType.MENU, menu=items)


class Controls:
    """The controls of one device, and the files that want their events."""

    def __init__(self, controls: Sequence[Control]) -> None:
        self.all = {control.id: control for control in sorted(controls, key=lambda one: one.id)}
        self.files: set[ControlledFile] = set()

    def find(self, id_: int) -> Control:
        """Return a control; raises EINVAL if there is none."""
        if id_ not in self.all:
            raise invalid("no such control")
        return self.all[id_]

    def query(self, id_: int) -> Control:
        """Return a control, or the next one if the number has the flag for that."""
        if id_ & _NEXT_ANY:
            after = (one for one in self.all.values() if id_ & _NEXT and one.id > id_ & ~_NEXT_ANY)
            id_ = next((one.id for one in after), 0)
        return self.find(id_)

    def check_class(self, which: int) -> None:
        """Raise EINVAL if a class has no controls; 0 is any class."""
        if which and which | 1 not in self.all:
            raise invalid("no such class")

    def set(self, control: Control, value: int, by: "ControlledFile") -> None:
        """Change a control, and report that."""
        if control.value != value:
            control.value = value
            for file in self.files:
                file.changed(control, raw.EventControlChange.VALUE, by)


def _readable(control: Control) -> Control:
    if control.flags & raw.ControlFlag.WRITE_ONLY:
        raise OSError(errno.EACCES, "cannot be read")
    return control


def _writable(control: Control) -> Control:
    if control.flags & raw.ControlFlag.READ_ONLY:
        raise OSError(errno.EACCES, "cannot be set")
    return control


class ControlledFile(Prioritised):
    """An open file of a device that has controls."""

    controls: Controls

    def __init__(self) -> None:
        self.subscribed: dict[int, int] = {}
        """By a control's number: the flags of the subscription to its events."""
        self.events: dict[int, raw.v4l2_event] = {}
        """The last event of each control, oldest first."""
        self.happened = asyncio.Event()
        self.count = 0

    # Descriptions

    @handles(raw.IOC.QUERYCTRL, raw.v4l2_queryctrl)
    async def queryctrl(self, asked: raw.v4l2_queryctrl) -> raw.v4l2_queryctrl:
        control = self.controls.query(asked.id)
        return raw.v4l2_queryctrl(*control.described)

    @handles(raw.IOC.QUERY_EXT_CTRL, raw.v4l2_query_ext_ctrl)
    async def query_ext_ctrl(self, asked: raw.v4l2_query_ext_ctrl) -> raw.v4l2_query_ext_ctrl:
        control = self.controls.query(asked.id)
        return raw.v4l2_query_ext_ctrl(*control.described, elem_size=4, elems=1)

    @handles(raw.IOC.QUERYMENU, raw.v4l2_querymenu)
    async def querymenu(self, asked: raw.v4l2_querymenu) -> raw.v4l2_querymenu:
        control = self.controls.find(asked.id)
        if asked.index >= len(control.menu):
            raise invalid("not in the menu")
        item = raw.v4l2_querymenu(control.id, asked.index)
        item.name = control.menu[asked.index].encode()
        return item

    # One at a time

    @handles(raw.IOC.G_CTRL, raw.v4l2_control)
    async def g_ctrl(self, asked: raw.v4l2_control) -> None:
        asked.value = _readable(self.controls.find(asked.id)).value

    @handles(raw.IOC.S_CTRL, raw.v4l2_control)
    async def s_ctrl(self, asked: raw.v4l2_control) -> None:
        self.may_change()
        control = _writable(self.controls.find(asked.id))
        asked.value = control.fitting(asked.value)
        self.controls.set(control, asked.value, self)

    # Several: the structure says which one is wrong, so the program gets it along with the error.

    @handles(raw.IOC.G_EXT_CTRLS, raw.v4l2_ext_controls)
    async def g_ext_ctrls(self, asked: raw.v4l2_ext_controls, memory: Memory) -> int:
        items = _items(asked, memory)
        which = asked.which
        try:
            defaults = which == raw.ControlWhichValue.DEF_VAL
            controls = self._find(asked, items, 0 if defaults else which)
            for item, control in zip(items, map(_readable, controls), strict=True):
                item.value = control.default if defaults else control.value
            asked.error_idx = asked.count
        except OSError as error:
            asked.error_idx = asked.count
            return -(error.errno or errno.EIO)
        _write(asked, items, memory)
        return 0

    @handles(raw.IOC.S_EXT_CTRLS, raw.v4l2_ext_controls)
    async def s_ext_ctrls(self, asked: raw.v4l2_ext_controls, memory: Memory) -> int:
        self.may_change()
        items = _items(asked, memory)
        try:
            controls = self._fit(asked, items)
        except OSError as error:
            # It does not say which, since none was changed.
            asked.error_idx = asked.count
            return -(error.errno or errno.EIO)
        for item, control in zip(items, controls, strict=True):
            self.controls.set(control, item.value, self)
        _write(asked, items, memory)
        return 0

    @handles(raw.IOC.TRY_EXT_CTRLS, raw.v4l2_ext_controls)
    async def try_ext_ctrls(self, asked: raw.v4l2_ext_controls, memory: Memory) -> int:
        items = _items(asked, memory)
        try:
            self._fit(asked, items)
        except OSError as error:
            return -(error.errno or errno.EIO)
        _write(asked, items, memory)
        return 0

    def _fit(
        self, asked: raw.v4l2_ext_controls, items: list[raw.v4l2_ext_control]
    ) -> list[Control]:
        """Make the values fit; if one cannot, raise with ``error_idx`` at it."""
        asked.error_idx = asked.count
        controls = self._find(asked, items, asked.which)
        for index, (item, control) in enumerate(zip(items, controls, strict=True)):
            asked.error_idx = index
            item.value = _writable(control).fitting(item.value)
        asked.error_idx = asked.count
        return controls

    def _find(
        self, asked: raw.v4l2_ext_controls, items: list[raw.v4l2_ext_control], which: int
    ) -> list[Control]:
        if which & ~_CLASS_MASK or which in (
            raw.ControlWhichValue.DEF_VAL,
            raw.ControlWhichValue.REQUEST_VAL,
        ):
            raise invalid("nothing of this kind")
        if not items:
            self.controls.check_class(which)
        found = []
        for index, item in enumerate(items):
            if which and item.id & _CLASS_MASK != which:
                asked.error_idx = index
                raise invalid("of another class")
            try:
                found.append(self.controls.find(item.id))
            except OSError:
                asked.error_idx = index
                raise
        return found

    # Events

    @handles(raw.IOC.SUBSCRIBE_EVENT, raw.v4l2_event_subscription)
    async def subscribe_event(self, wanted: raw.v4l2_event_subscription) -> None:
        if wanted.type != raw.EventType.CTRL:
            raise invalid("no such events")
        control = self.controls.find(wanted.id)
        self.subscribed[control.id] = wanted.flags
        self.controls.files.add(self)
        if wanted.flags & raw.EventSubscriptionFlag.SEND_INITIAL and not control.is_class:
            changes = raw.EventControlChange.VALUE | raw.EventControlChange.FLAGS
            self.changed(control, changes, None)

    @handles(raw.IOC.UNSUBSCRIBE_EVENT, raw.v4l2_event_subscription)
    async def unsubscribe_event(self, wanted: raw.v4l2_event_subscription) -> None:
        if wanted.type == raw.EventType.ALL:
            self.subscribed.clear()
            self.events.clear()
        elif wanted.type == raw.EventType.CTRL:
            self.subscribed.pop(wanted.id, None)
            self.events.pop(wanted.id, None)

    def changed(self, control: Control, changes: int, by: "ControlledFile | None") -> None:
        """Keep an event for the program, if it has subscribed."""
        flags = self.subscribed.get(control.id)
        feedback = raw.EventSubscriptionFlag.ALLOW_FEEDBACK
        if flags is None or (by is self and not flags & feedback):
            return
        before = self.events.pop(control.id, None)
        event = raw.v4l2_event(type=raw.EventType.CTRL, sequence=self.count, id=control.id)
        self.count += 1
        event.timestamp.secs, event.timestamp.nsecs = divmod(time.monotonic_ns(), 10**9)
        told = event.u.ctrl
        told.changes = changes | (before.u.ctrl.changes if before is not None else 0)
        told.type, told.value, told.flags = control.type, control.value, control.flags
        told.minimum, told.maximum = control.minimum, control.maximum
        told.step, told.default_value = control.step, control.default
        self.events[control.id] = event
        self.happened.set()
        self.wake_pollers()

    @handles(raw.IOC.DQEVENT, raw.v4l2_event)
    async def dqevent(self, _: raw.v4l2_event) -> raw.v4l2_event:
        while not self.events:
            if self.nonblocking:
                raise OSError(errno.ENOENT, "no event")
            self.happened.clear()
            await self.happened.wait()
        event = self.events.pop(next(iter(self.events)))
        event.pending = len(self.events)
        return event


def _items(asked: raw.v4l2_ext_controls, memory: Memory) -> list[raw.v4l2_ext_control]:
    """Return the controls that a program asks for, by following a pointer."""
    if asked.count > _MAX_CONTROLS:
        raise invalid("too many controls")
    asked.reserved[0] = 0
    if not asked.count:
        return []
    return memory.read_array(_address(asked), raw.v4l2_ext_control, asked.count)


def _write(asked: raw.v4l2_ext_controls, items: list[raw.v4l2_ext_control], memory: Memory) -> None:
    memory.write(_address(asked), b"".join(map(bytes, items)))


def _address(asked: raw.v4l2_ext_controls) -> int:
    """Return the pointer's value; linuxpy declares it as a pointer in this process."""
    place = raw.v4l2_ext_controls.controls
    return int.from_bytes(bytes(asked)[place.offset : place.offset + place.size], "little")
