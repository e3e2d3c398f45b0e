"""The programs' end of a socket pair shows what it is told to, as the kernel's own poll says."""

import os
import select

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from recuse.sandbox.files.socket_end import SocketEnd

IN, PRI, OUT, ERR, HUP = 1, 2, 4, 8, 16


class Ends(RuleBasedStateMachine):
    """Any order of what can be asked of an end, with an epoll that is told of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.end = SocketEnd()
        self.theirs = os.dup(self.end.theirs)
        self.end.hand_over()
        self.epoll = select.epoll()
        self.epoll.register(self.theirs, IN | OUT | select.EPOLLET)
        self.shown = IN | OUT
        self.news: bool | None = True

    def fetch(self) -> int:
        return os.dup(self.theirs)

    @rule()
    def readable(self) -> None:
        if not self.end.full and not self.end.severed:
            self.news = True
        self.end.make_readable()
        self.shown |= IN

    @precondition(lambda self: not self.end.severed)
    @rule()
    def urgent(self) -> None:
        self.end.make_urgent()
        self.shown |= IN | PRI
        self.news = None

    @precondition(lambda self: not self.end.writable)
    @rule()
    def writable(self) -> None:
        self.end.make_writable()
        self.shown |= OUT
        self.news = True

    @rule()
    def touch(self) -> None:
        if self.end.spares > 1 and self.end.writable and not self.end.severed:
            self.news = True
        self.end.touch_writable()

    @rule(drain=st.booleans(), fill=st.booleans(), spare=st.booleans())
    def lower(self, drain: bool, fill: bool, spare: bool) -> None:
        writable = self.end.writable
        fill = fill and writable
        self.end.lower(self.fetch, drain=drain, fill=fill, spare=spare)
        if self.end.severed:
            return
        if drain:
            self.shown &= ~(IN | PRI)
            assert not self.end.full
        if fill:
            self.shown &= ~OUT
        if spare and writable:
            assert self.end.spares > 1
        self.news = None

    @rule()
    def sever(self) -> None:
        self.end.sever(self.end.close)
        self.shown = IN | OUT | ERR | HUP
        self.news = None

    @invariant()
    def it_shows_what_it_should(self) -> None:
        poll = select.poll()
        poll.register(self.theirs, IN | PRI | OUT)
        found = dict(poll.poll(0)).get(self.theirs, 0)
        if self.end.severed:
            found &= ~PRI
        assert found == self.shown
        assert self.end.urgent >= bool(self.shown & PRI)

    @invariant()
    def news_are_told(self) -> None:
        told = bool(self.epoll.poll(0))
        if self.news and self.shown & (IN | OUT):
            assert told
        self.news = False

    def teardown(self) -> None:
        self.epoll.close()
        self.end.close()
        os.close(self.theirs)


TestEnds = Ends.TestCase


def test_an_end_that_the_caller_has_no_more() -> None:
    def fetch() -> int:
        raise OSError(9, "closed meanwhile")

    end = SocketEnd()
    end.lower(fetch, drain=True, fill=True, spare=True)
    assert end.readable
    assert end.writable
    end.hand_over()
    end.make_readable()
    end.make_urgent()
    end.touch_writable()
    end.close()
