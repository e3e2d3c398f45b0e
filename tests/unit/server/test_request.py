"""What a handler knows of the request that it answers."""

import asyncio
import itertools

import pytest

from recuse import Device, File, OpenRequest, Request, current_request, ioctl
from recuse.server.pending_reply import PendingReply
from recuse.server.session import Session
from recuse.wire.cuse import CUSE_INIT
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_IOCTL_COMPAT,
    FUSE_OPEN,
    FUSE_READ,
    fuse_ioctl_in,
    fuse_open_in,
)
from recuse.wire.optable import OPERATIONS

from .conftest import Serve


def facts(request: OpenRequest | Request) -> tuple[str, int, int | None, int | None, int]:
    return request.operation, request.unique, request.uid, request.gid, request.pid


def test_each_operation_has_its_request(serve: Serve) -> None:
    seen = []

    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            assert facts(current_request()) == facts(request)
            seen.append(facts(request))
            return ProbeFile()

    class ProbeFile(File):
        def see(self, *arguments: object) -> None:
            request = current_request()
            assert type(request) is Request
            assert not request.interrupted
            seen.append(facts(request))

        write = release = see  # type: ignore[assignment]  # whatever they are given

        def read(self, size: int, offset: int) -> bytes:
            self.see()
            return b""

        @ioctl(1)
        def one(self) -> None:
            self.see()

    peer = serve(Probe())
    fh = peer.open()
    peer.read(fh)
    peer.write(fh, b"x")
    peer.restricted_ioctl(fh, 1)
    peer.release(fh)
    names = ["open", "read", "write", "ioctl", "release"]
    assert seen == [(name, 2 + 2 * n, 1000, 100, 77) for n, name in enumerate(names)]
    with pytest.raises(LookupError):
        current_request()


def test_ids_that_do_not_exist_here(serve: Serve) -> None:
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            assert facts(request)[2:] == (None, None, 0)
            return File()

    serve(Probe()).call(FUSE_OPEN, fuse_open_in(), uid=0xFFFFFFFF, gid=0xFFFFFFFF, pid=0)


def test_it_can_be_shown(serve: Serve) -> None:
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            assert repr(request) == "<OpenRequest 2: open by 77>"
            return File()

    serve(Probe()).open()


def test_coroutines_and_their_tasks_have_it(serve: Serve) -> None:
    class ProbeFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            async def ask() -> bytes:
                return str(current_request().unique).encode()

            await asyncio.sleep(0)
            return b" ".join(await asyncio.gather(ask(), asyncio.create_task(ask())))

    peer = serve(ProbeFile)
    fh = peer.open()
    uniques = [peer.post_read(fh) for _ in range(10)]
    for unique in uniques:
        assert peer.answer(unique) == b"%d %d" % (unique, unique)


def test_a_handler_that_makes_a_request_keeps_its_own(serve: Serve) -> None:
    class Outer(File):
        def read(self, size: int, offset: int) -> bytes:
            before = current_request().unique
            assert inner.read(inner_fh) == b"800"
            assert current_request().unique == before
            return b"%d" % before

    class Inner(File):
        def read(self, size: int, offset: int) -> bytes:
            return b"%d" % current_request().unique

    inner = serve(Inner)
    inner_fh = inner.open()
    outer = serve(Outer)
    fh = outer.open()
    inner.uniques = itertools.count(800)
    unique = outer.post_read(fh)
    assert outer.answer(unique) == b"%d" % unique


def test_compat_is_about_ioctls_only() -> None:
    header = bytes(40)
    for opcode, flags, expected in (
        (FUSE_IOCTL, FUSE_IOCTL_COMPAT, True),
        (FUSE_IOCTL, 0, False),
        (FUSE_READ, FUSE_IOCTL_COMPAT, False),
    ):
        message = header + fuse_ioctl_in(flags=flags).pack()
        assert Request(PendingReply(message, opcode, 2, lambda _: None)).compat is expected


def test_each_request_that_runs_a_handler_has_its_operation() -> None:
    class Any(Device):
        name = "any"

        def open(self, request: OpenRequest) -> File:
            return File()

    opcodes = set(Session(Any())._serve) - {CUSE_INIT, FUSE_INTERRUPT}
    assert len(opcodes) > 5
    for opcode in opcodes:
        request = Request(PendingReply(b"", opcode, 2, lambda _: None))
        assert OPERATIONS[opcode].name.lower().endswith("_" + request.operation)
