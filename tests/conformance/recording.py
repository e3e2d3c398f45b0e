"""The server of the conformance suite: it tells what requests it gets, and answers as it is told.

What a case of the client says to the server, one line each:

    next OP ACTION          do that with the next OP (READ, IOCTL...) that no earlier line is for
    forget OP               forget all that was to be done with it
    on-interrupt ACTION     do that with a request for which an INTERRUPT comes
    answer OP ACTION        do that with the oldest OP that is held
    await OP NUMBER         wait until that many OPs have come since the case began
    notify NUMBER           FUSE_NOTIFY_POLL to the poller that was the NUMBERth to come
    notify-raw KH           the same with a handle that there may not be
    pause                   wait a little, for nothing to happen

Actions:

    pass                    what the device answers (devices.py)
    hold                    nothing, until an `answer` or an INTERRUPT
    error NUMBER            an error
    data SIZE               that many bytes, however many are asked for
    count SIZE              that many bytes written
    ioctl RESULT FLAGS IN OUT HEX      fuse_ioctl_out and what follows it
    retry IN OUT AREA...    the same for FUSE_IOCTL_RETRY; the last area, ADDRESS:LENGTH, is
                            repeated until there are IN and OUT of them
    echo                    for an ioctl: what came in
    poll EVENTS             ready for these
    open FLAGS              what the device answers, with these open_flags
    raw HEX                 these bytes after the header
    ignore, again, unknown  for an INTERRUPT only: nothing; EAGAIN twice and then "error 4"; ENOSYS
"""

from __future__ import annotations

import errno
import itertools
import struct
import threading
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recuse import Device
from recuse.server.pending_reply import PendingReply
from recuse.server.session import Session
from recuse.wire.cuse import CUSE_INIT, CUSE_UNRESTRICTED_IOCTL, cuse_init_in
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_IOCTL_RETRY,
    FUSE_NOTIFY_POLL,
    fuse_in_header,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
    fuse_notify_poll_wakeup_out,
    fuse_open_out,
    fuse_out_header,
    fuse_poll_out,
    fuse_write_out,
)
from recuse.wire.message import decode_request
from recuse.wire.optable import OPERATIONS

from .devices import pattern

PATIENCE_S = 30
"""How long to wait for what must come; only a failure takes as long."""

Send = Callable[[bytes], object]


@dataclass(slots=True)
class Held:
    """A request that waits for its answer."""

    name: str
    message: bytes
    send: Send
    session: RecordingSession
    line: int = 0
    """Where the record has it."""


class Recorder:
    """What all devices of a place have in common: the record, and what they were told."""

    def __init__(self, pause_s: float) -> None:
        self._changed = threading.Condition()
        self._pause_s = pause_s
        self.lines: list[str] = []
        self.begin()

    def begin(self) -> None:
        """Forget the case before."""
        with self._changed:
            self.lines = []
            self._next: defaultdict[str, deque[str]] = defaultdict(deque)
            self._on_interrupt = "error 4"
            self._again = 2
            self._held: list[Held] = []
            self._counts: Counter[str] = Counter()
            self._threads: dict[int, str] = {}
            self._files: dict[tuple[Session, int], str] = {}
            self._owners: dict[tuple[Session, int], tuple[str, str]] = {}
            self._owner_count = 0
            self._pollers: dict[int, tuple[str, Send]] = {}
            self._open = 0

    def end(self) -> list[str]:
        """Answer what is still held, wait until all is released; return the record."""
        with self._changed:
            left, self._held = self._held, []
        for held in left:
            self._answer(held, "error 5")
        self.settle()
        with self._changed:
            return _sorted_releases(self.lines)

    def settle(self) -> None:
        """Wait until all files are released."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, PATIENCE_S):
                self.lines.append("!! not all files were released")

    @property
    def holds_any(self) -> bool:
        """Whether a request is held, so that a file may be closed and not released."""
        with self._changed:
            return bool(self._held)

    def note(self, line: str) -> None:
        """Add a line of the client's."""
        with self._changed:
            self.lines.append(line)

    def call(self, thread: int, name: str) -> None:
        """Give a thread a name."""
        with self._changed:
            self._threads[thread] = name
            # An earlier child may have ended, and its descriptor table's address be another's now.
            for key in [key for key, (_, who) in self._owners.items() if who.startswith("child")]:
                del self._owners[key]

    def tell(self, command: str) -> str:
        """Do what a case says; return "", "?" for not yet, or what is wrong with it."""
        verb, _, rest = command.partition(" ")
        what, _, action = rest.partition(" ")
        match verb:
            case "next":
                with self._changed:
                    self._next[what].append(action)
            case "forget":
                with self._changed:
                    self._next[what].clear()
            case "on-interrupt":
                with self._changed:
                    self._on_interrupt = rest
            case "answer":
                with self._changed:
                    found = [held for held in self._held if held.name == what]
                    if not found:
                        return f"no {what} is held"
                    self._held.remove(found[0])
                self._answer(found[0], action)
            case "await":
                # Others may have something to say meanwhile: the client asks again.
                with self._changed:
                    return "" if self._counts[what] >= int(action) else "?"
            case "notify":
                handle = list(self._pollers)[int(rest) - 1]
                self._notify(handle, *self._pollers[handle])
            case "notify-raw":
                _, send = next(iter(self._pollers.values()))
                self._notify(int(rest), rest, send)
            case "pause":
                time.sleep(self._pause_s)
            case _:
                return f"unknown: {command}"
        return ""

    def _notify(self, handle: int, name: str, send: Send) -> None:
        body = fuse_notify_poll_wakeup_out(kh=handle).pack()
        header = fuse_out_header(fuse_out_header.SIZE + len(body), FUSE_NOTIFY_POLL, 0)
        with self._changed:
            self.lines.append(f"    the server notifies {name}")
            line = len(self.lines) - 1
        self._send(send, header.pack() + body, line)

    def request(self, session: RecordingSession, message: bytes, send: Send) -> None:
        """Take note of a request, and answer it."""
        header, body, payload = decode_request(message)
        name = OPERATIONS[header.opcode].name.removeprefix("FUSE_")
        held = Held(name, message, send, session)
        if header.opcode == CUSE_INIT:
            assert isinstance(body, cuse_init_in)
            # No server of Linux's has what recuse's kernel half offers beyond that.
            offer = cuse_init_in(body.major, body.minor, 0, CUSE_UNRESTRICTED_IOCTL)
            session.answer(message[: fuse_in_header.SIZE] + offer.pack(), send)
            return
        target: Held | None = None
        with self._changed:
            if header.opcode == FUSE_INTERRUPT:
                target = self._interrupted(session, header, body)
                action = self._on_interrupt if target is not None else "ignore"
            else:
                held.line = len(self.lines)
                self.lines.append(self._described(session, name, header, body, payload, send))
                waiting = self._next[name]
                action = waiting.popleft() if waiting else session.usual(name)
                if action == "hold":
                    self._held.append(held)
            self._counts[name] += 1
            self._changed.notify_all()
        if header.opcode == FUSE_INTERRUPT:
            self._interrupt(held, target, action)
        elif action != "hold":
            self._answer(held, action)

    def _interrupted(
        self, session: RecordingSession, header: fuse_in_header, body: Any
    ) -> Held | None:
        """Take note of an INTERRUPT; return the request that it is for."""
        rest = "" if header.unique == body.unique | 1 else f" unique={header.unique}"
        for field in ("nodeid", "uid", "gid", "pid", "total_extlen", "padding"):
            if value := getattr(header, field):
                rest += f" {field}={value}"
        for held in self._held:
            unique = fuse_in_header.unpack(held.message).unique
            if held.session is session and unique == body.unique:
                self.lines.append(f"    INTERRUPT of {held.name}{rest}")
                return held
        self.lines.append(f"    INTERRUPT of what has been answered{rest}")
        return None

    def _interrupt(self, interrupt: Held, target: Held | None, action: str) -> None:
        if action == "again" and self._again:
            self._again -= 1
            self._answer(interrupt, f"error {errno.EAGAIN}")
        elif action == "unknown":
            self._answer(interrupt, f"error {errno.ENOSYS}")
        elif target is not None and action != "ignore":
            with self._changed:
                self._held.remove(target)
            self._answer(target, "error 4" if action == "again" else action)

    def _described(  # noqa: PLR0917
        self,
        session: RecordingSession,
        name: str,
        header: fuse_in_header,
        body: Any,
        payload: memoryview,
        send: Send,
    ) -> str:
        who = self._threads.get(header.pid, "0" if not header.pid else "nobody")
        words = [f"    {name} by {who}, {header.uid}:{header.gid}"]
        if header.nodeid or header.total_extlen or header.padding:
            words.append(f"header {header}")
        if header.unique <= session.last_unique or header.unique % 2:
            words.append(f"unique {header.unique} after {session.last_unique}")
        session.last_unique = header.unique
        for field in () if body is None else body.FIELDS:
            value = getattr(body, field.name)
            if field.name == "fh":
                words.append(self._files.get((session, value), "a file never opened"))
            elif field.name == "lock_owner":
                words.append(f"lock_owner={self._owner(session, value, who)}")
            elif field.name == "kh":
                if value not in self._pollers:
                    self._pollers[value] = (f"kh{len(self._pollers) + 1}", send)
                words.append(self._pollers[value][0])
            elif field.name.startswith(("padding", "unused")):
                if value:
                    words.append(f"{field.name}={value}")
            elif "flags" in field.name or field.name in ("events", "cmd", "arg"):
                words.append(f"{field.name}={value:#x}")
            else:
                words.append(f"{field.name}={value}")
        if len(payload):
            words.append(digest(bytes(payload)))
        return " ".join(words)

    def _owner(self, session: Session, value: int, who: str) -> str:
        if not value:
            return "0"
        if (session, value) not in self._owners:
            self._owner_count += 1
            self._owners[session, value] = f"owner{self._owner_count}", who
        return self._owners[session, value][0]

    def opened(self, session: Session, handle: int) -> None:
        """A file has a number now."""
        with self._changed:
            self._open += 1
            self._files[session, handle] = f"file{len(self._files) + 1}"

    def released(self) -> None:
        """One is gone."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def _answer(self, held: Held, action: str) -> None:
        header = fuse_in_header.unpack(held.message)
        verb, _, rest = action.partition(" ")
        error = 0
        payload = b""
        match verb:
            case "pass" | "open":
                flags = int(rest or "0", 0)
                held.session.answer(held.message, lambda data: self._pass(held, data, flags))
                return
            case "error":
                error = -int(rest)
            case "data":
                payload = pattern(int(rest))
            case "count":
                payload = fuse_write_out(size=int(rest)).pack()
            case "ioctl":
                *numbers, data = [*rest.split(), ""][:5]
                payload = fuse_ioctl_out(*(int(number, 0) for number in numbers)).pack()
                payload += bytes.fromhex(data)
            case "retry":
                payload = _retry(rest)
            case "echo":
                payload = fuse_ioctl_out().pack() + bytes(decode_request(held.message)[2])
            case "poll":
                payload = fuse_poll_out(revents=int(rest, 0)).pack()
            case "raw":
                payload = bytes.fromhex(rest)
            case _:
                raise ValueError(action)
        out = fuse_out_header(fuse_out_header.SIZE + len(payload), error, header.unique)
        self._pass(held, out.pack() + payload, 0)

    def _pass(self, held: Held, data: bytes, open_flags: int) -> None:
        header = fuse_out_header.unpack(data)
        good = not header.error and len(data) == fuse_out_header.SIZE + fuse_open_out.SIZE
        if held.name == "OPEN" and good:
            opened = fuse_open_out.unpack(data, fuse_out_header.SIZE)
            self.opened(held.session, opened.fh)
            opened.open_flags |= open_flags
            data = data[: fuse_out_header.SIZE] + opened.pack()
        if not self._send(held.send, data, held.line):
            if held.name == "OPEN" and good:
                self.released()
            elif not -512 < header.error <= 0:
                # The request is still there.
                self._send(held.send, struct.pack("=IiQ", 16, -errno.EIO, header.unique), 0)
        if held.name == "RELEASE":
            self.released()

    def _send(self, send: Send, data: bytes, line: int) -> bool:
        try:
            send(data)
        except OSError as error:
            name = errno.errorcode[error.errno or 0]
            with self._changed:
                self.lines[line] += f"; what the server wrote was refused: {name}"
            return False
        return True


class RecordingSession(Session):
    """A session whose recorder comes first."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        super().__init__(device)
        self._recorder = recorder
        self.last_unique = 0

    def handle(self, message: bytes, reply: Send) -> None:
        """Answer one request."""
        self._recorder.request(self, message, reply)

    def transfer(self, pending: PendingReply, *parts: Any) -> None:
        """Answer a READ or WRITE. One that came without a message is recorded as one."""
        if type(pending) is PendingReply:
            super().transfer(pending, *parts)
        else:
            self.handle(pending.message, pending.send)

    def answer(self, message: bytes, reply: Send) -> None:
        """Have the device answer it."""
        super().handle(message, reply)

    def usual(self, name: str) -> str:
        """What to do if no case says so."""
        actions: dict[str, str] = getattr(self.device, "actions", {})
        return actions.get(name, "pass")


def _retry(text: str) -> bytes:
    """An answer that asks for areas of the caller's memory."""
    inputs, outputs, *words = text.split()
    areas = [tuple(int(number, 0) for number in word.split(":")) for word in words]
    areas += areas[-1:] * (int(inputs) + int(outputs) - len(areas))
    out = fuse_ioctl_out(flags=FUSE_IOCTL_RETRY, in_iovs=int(inputs), out_iovs=int(outputs))
    return out.pack() + b"".join(fuse_ioctl_iovec(*area).pack() for area in areas)


def _sorted_releases(lines: list[str]) -> list[str]:
    """Files that are let go at once are released in any order."""
    groups = itertools.groupby(lines, lambda line: line.startswith("    RELEASE "))
    parts = (sorted(part) if is_release else list(part) for is_release, part in groups)
    return list(itertools.chain.from_iterable(parts))


def digest(data: bytes) -> str:
    """Data as the client shows it, too."""
    if len(data) <= 32:
        return f"data={data.hex()}"
    return f"data={len(data)} bytes, {zlib.crc32(data):08x}"
