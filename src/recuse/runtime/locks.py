"""All locks of recuse, and the order in which they are taken.

A thread may take a lock while it holds those above which that lock is indented, and no others. It
never takes two of one name. A name that stands in several places is explained in the first. One
with "(waits)" may be held while its thread waits for somebody else, who must not need it: a server,
a program's thread that makes calls for us, another thread of ours. All others are held for a moment
only, and no method of a device's runs meanwhile. (A thread is started with any of them held: the
new one takes none before it says that it runs.) A ``__del__`` takes none: a collection of garbage
comes in any thread, in the middle of anything.

    Client.ending (waits): the end of a connection at a socket, which happens once
        Session: whether a session has been closed
        Runner (waits): a session's tasks on the event loop
            server.loop (waits): the event loop, and how many use it
        Packets.receiving (waits): the packets that arrive, of which several make a message
            Packets: those to be sent, and the end of the connection
        Pollers: whom a device's file has promised to say that it is ready
        IoctlRetries: what ioctls have asked for that the program's thread has to fetch
        Area.resizing: the size of a device's memory
    RemoteChannel: the connection to a server that may go and come back
        Packets
    Link.sending: the order of the messages to a server at a socket
        SubmitSide: a connection's queue of requests, and its state
        Packets
    CuseFile: who waits in a read of /dev/cuse, and what its descriptor shows
        SubmitSide
        PipeEnd: what a pipe shows that is a device's descriptor
    ReadinessRefresher: who sleeps in a wait for an epoll, and what is on its ready list
        Readiness (waits): what a device's descriptor shows, and who sleeps until that changes
            Injection.busy (waits): a program's thread that makes calls for us
            SignalWatch.taking: whose calls are looked at for signals
            Tasks: what is known of the programs' threads
            FileTable: the devices' descriptors that programs have, and what is being released
                PipeEnd
            PipeEnd
    MemoryMaps: what of the devices' memory programs have mapped
        FileTable
        Workers: who of some threads leads, and who is spare
    MountedDevice: the memory that the kernel has for a file on a FUSE mount
        Channel: who uses the descriptor of /dev/cuse or /dev/fuse
    PrivateSnapshots: how much memory holds copies of what devices have been read for
    Listener.polling (waits): the receiving of trapped calls
    Sandbox: the programs that run
    DeviceServer: the connections at a device's socket
    EndingSignals: the pipe by which signals wake the main thread
    DeviceTable: the devices, by name and number
    FileLocks: who has locked a device with flock, and who waits for that
    StringReader: the descriptors of the programs' memories
    Modes: which files of a filesystem are open by the page cache, and which by a backing file
    Notifications: the thread that sends a filesystem's notifications
    KnownNodes: which nodes of a filesystem the kernel half knows, and how often
    DeviceFiles: the devices' nodes, and their directories
        Mounts: where trees of files are seen
        PlaceholderDirs: the directories that stand for those that exist only in a sandbox
    AttributeFile: the position in an open file of /sys, and what has been read
    rights.becoming: how many threads act as somebody whom nobody may trace

The tests hold all threads to this (``tests/lock_watch.py``).
"""

import threading
from collections.abc import Callable
from typing import Any

watch: Callable[[str, bool], Any] | None = None
"""Makes the locks, if the tests are to know of them: by name, and whether it is an RLock."""


def new_lock(name: str) -> threading.Lock:
    """Return a new lock, which has a place in the order by its name."""
    lock: threading.Lock = threading.Lock() if watch is None else watch(name, False)
    return lock


def new_rlock(name: str) -> threading.RLock:
    """Return one that its owner may take once more."""
    lock: threading.RLock = threading.RLock() if watch is None else watch(name, True)
    return lock
