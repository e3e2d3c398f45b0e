"""Acting as somebody else, and oneself again."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from recuse.runtime import threads
from recuse.sandbox.arch import arch
from recuse.sandbox.tasks import rights
from recuse.sandbox.tasks.rights import Acting, LostRightsError, Rights, in_own_thread

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

OTHER = Rights(1000, 1001, 1002, 1003, (5, 34), 1 << 3)
NAMES = ("Uid", "Gid", "Groups", "CapEff")


def status(thread: str = "thread-self") -> dict[str, list[str]]:
    """The rights of a thread, as /proc tells them."""
    lines = Path(f"/proc/{thread}/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":\t", 1) for line in lines)
    return {name: found[name].split() for name in NAMES}


def dumpable() -> int:
    """What PR_GET_DUMPABLE says."""
    return int(rights._libc.prctl(3, 0, 0, 0, 0))


@root_only
def test_a_thread_acts_as_another_user() -> None:
    own = rights.own_rights()
    before = status()
    with Acting(own, OTHER):
        during = status()
    assert during["Uid"] == [before["Uid"][0], "1002", before["Uid"][2], "1000"]
    assert during["Gid"] == [before["Gid"][0], "1003", before["Gid"][2], "1001"]
    assert during["Groups"] == ["5", "34"]
    assert int(during["CapEff"][0], 16) == 1 << 3
    assert status() == before
    assert rights.own_rights() == own


@root_only
def test_a_thread_acts_for_a_moment() -> None:
    before = status()
    with Acting(rights.own_rights(), OTHER).brief:
        during = status()
    assert (during["Uid"][3], during["Gid"][3], during["Groups"]) == ("1000", "1001", ["5", "34"])
    # CAP_SETGID and CAP_SETUID, for the way back, so far as this process has them.
    assert int(during["CapEff"][0], 16) == 1 << 3 | 1 << 6 | 1 << 7
    assert status() == before


@root_only
def test_others_do_not() -> None:
    inside, leave = threading.Event(), threading.Event()

    def act() -> None:
        with Acting(rights.own_rights(), OTHER):
            inside.set()
            leave.wait(60)

    before = status()
    thread = threading.Thread(target=act)
    thread.start()
    assert inside.wait(60)
    assert status() == before
    assert status(f"self/task/{thread.native_id}")["Uid"][3] == "1000"
    leave.set()
    thread.join()


@root_only
def test_its_own_rights_in_between() -> None:
    acting = Acting(rights.own_rights(), OTHER)
    before = status()
    with acting:
        with acting.paused():
            assert status() == before
        assert status()["Uid"][3] == "1000"
    assert status() == before


@root_only
def test_for_good_in_a_thread_of_its_own() -> None:
    before = status()
    umask = os.umask(0o022)

    def look(left: int) -> tuple[dict[str, list[str]], int, int]:
        mask = os.umask(0)
        if left:
            os.umask(mask)  # it is the process's
        return status(), mask, left

    during, mask, left = in_own_thread(Acting(rights.own_rights(), OTHER), 0o123, look)
    assert os.umask(umask) == 0o022
    # The real and saved ids stay, so that nobody else may do anything to the thread.
    assert during["Uid"] == ["0", "1002", "0", "1000"]
    assert during["Gid"] == ["0", "1003", "0", "1001"]
    assert (int(during["CapEff"][0], 16), during["Groups"]) == (1 << 3, ["5", "34"])
    assert (mask, left) in [(0o123, 0), (0o022, 0o123)]  # where unshare is refused
    assert status() == before


def test_what_is_raised_there_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        in_own_thread(None, 0, lambda _: 1 // 0)


def test_the_last_thread_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LAST_THREADS", {threading.get_ident(): lambda: False})
    with pytest.raises(OSError, match="threads") as raised:
        in_own_thread(None, 0, lambda _: None)
    assert raised.value.errno == errno.EAGAIN


@root_only
def test_others_may_look_into_the_process_as_before() -> None:
    acting = Acting(rights.own_rights(), OTHER)
    with acting:
        assert dumpable() != 1
    assert dumpable() == 1
    in_own_thread(acting, 0, lambda _: None)
    assert dumpable() == 1


@root_only
def test_not_while_a_thread_has_another_effective_user() -> None:
    acting = Acting(rights.own_rights(), OTHER)

    def act() -> None:
        with acting:
            pass

    # The other thread has more capabilities than this one: it must be started before.
    started, go = threading.Event(), threading.Event()

    def later() -> None:
        started.set()
        go.wait(60)
        act()

    other = threading.Thread(target=later)
    other.start()
    started.wait(60)

    def see(_: int) -> int:
        go.set()
        other.join()
        return dumpable()

    assert in_own_thread(acting, 0, see) != 1
    assert dumpable() == 1


REFUSED = """
from recuse.sandbox.tasks import rights
from recuse.sandbox.tasks.rights import Acting, in_own_thread
own = rights.own_rights()
def look():
    with open('/proc/thread-self/status') as file: return file.read().partition('NStgid')[0]
before = look()
for change in ({'uid': 7}, {'gid': 7}, {'groups': (7,)}, {'uid': 7, 'groups': (7,)}):
    acting = Acting(own, own.rights._replace(**change))
    try:
        with acting: print('acts')
    except OSError as error: print(error.errno)
    try: in_own_thread(acting, 0, lambda left: print('acts'))
    except OSError as error: print(error.errno)
print(look() == before)
"""


def test_who_may_not_act_as_others_has_his_own_rights() -> None:
    argv = [sys.executable, "-c", REFUSED]
    if os.geteuid() == 0:
        argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [*[str(errno.EACCES)] * 8, "True"]


@root_only
def test_a_thread_that_cannot_be_itself_again_says_so() -> None:
    own = rights.own_rights()
    lost = []

    def act() -> None:
        try:
            with Acting(own, OTHER):
                # As setuid(2) of the whole process does it in each thread.
                rights._Capabilities(1 << 7, own.permitted, 0).take()
                rights._call(arch.SYSCALLS["setresuid"], 1000, 1000, 1000)
        except LostRightsError:
            lost.append(True)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    rights._acts.end(own)  # which that thread will never do
    assert lost == [True]


@pytest.mark.parametrize(
    ("change", "included"),
    [
        ({}, True),
        ({"capabilities": 0b1111}, True),
        ({"capabilities": 0b101}, False),
        ({"uid": 1}, False),
        ({"gid": 1}, False),
        ({"euid": 1}, False),
        ({"egid": 1}, False),
        ({"groups": (1,)}, False),
        ({"groups": (1, 2, 3)}, False),
    ],
)
def test_which_rights_include_others(change: dict[str, Any], included: bool) -> None:
    own = Rights(0, 0, 0, 0, (1, 2), 0b111)
    assert own._replace(**change).include(own) is included


def test_own_rights() -> None:
    own = rights.own_rights()
    assert (own.rights.euid, own.rights.egid) == (os.geteuid(), os.getegid())
    assert set(own.rights.groups) == set(os.getgroups())
