"""All locks of recuse, and the order in which they are taken.

A thread may take a lock while it holds the locks that it is indented under, and no others. It
never takes two locks of one name. A name that appears in several places is explained in the first.

A lock with "(waits)" may be held while its thread waits for somebody else, who must not need the
lock: a server, a program's thread that makes calls for us, another thread of ours. All others are
held for a moment only, and no method of a device runs meanwhile. (A thread may be started with any
of them held: the new one takes none before it reports that it runs.) A ``__del__`` takes none, as
garbage is collected in any thread, in the middle of anything.

    Client.ending (waits): the end of a connection at a socket, which happens once
        Session: whether a session has been closed
        FilesystemSession: the same of a filesystem's
        Notifications: the thread that sends a filesystem's notifications
        KnownNodes: which nodes of a filesystem the kernel half knows, and how often
        Modes: which files of a filesystem use the page cache, and which a backing file
        Runner (waits): a session's tasks on the event loop
            server.loop (waits): the event loop, and how many use it
        Packets.receiving (waits): the packets that arrive, several of which make a message
            Packets: those to be sent, and the end of the connection
        Arrivals: what the event loop is to call soon, and whether it still runs
        Pollers: the pollers that a device's file has promised to notify
        IoctlRetries: the memory that ioctls have asked for
        Area.resizing: the size of a device's memory
    RemoteChannel: the connection to a server that may leave and come back
        Packets
    Link.sending: the order of the messages to a server at a socket
        SubmitSide: a connection's queue of requests, and its state
        Packets
    ServerChannel: who waits in a read of /dev/cuse or /dev/fuse, and what that descriptor shows
        SubmitSide
        PipeEnd: what a pipe that is a device's descriptor shows
    ReadinessRefresher: who sleeps in a wait for an epoll, and what is on its ready list
        Readiness (waits): what a device's descriptor shows, and who sleeps until that changes
            Injection.busy (waits): a program's thread that makes calls for us
            SignalWatch.taking: the calls that are checked for signals
            Tasks: what is known about the programs' threads
            FileTable: the devices' descriptors that programs have, and what is being released
                PipeEnd
            PipeEnd
    Pages: what is known of the content of a filesystem's file, and what programs have mapped of it
        MemoryMaps: the parts of devices' and files' memory that programs have mapped
            FileTable
            Workers: which thread leads, and which are spare
        PrivateSnapshots: how much memory holds copies of data read from devices, and pages of files
    Listener.polling (waits): the receiving of trapped calls
    Sandbox: the programs that run
    DeviceServer: the connections at a socket
    EndingSignals: the pipe that signals use to wake the main thread
    DeviceTable: the devices, by name and number
    FileLocks: who has locked a device with flock, and who waits for that
    StringReader: the descriptors of the programs' memories
    FilesystemSession
    SharedRing: the entries of a mount's ring, and how many of them the kernel has
    Reserve (waits): the memory that a mount reads a request into when there is no other
        Channel: who uses the descriptor of /dev/cuse or /dev/fuse
    Modes
        Backing: who uses a backing file, and how files are open that may have one
        Channel
    SharedMemory: the area that the open files of a device on a mount have
    Notifications
    InodeTable: the inodes of a filesystem, and how often each was looked up
    Inode: the attributes of inodes, and whether they are up to date
        AttributeVersions: which replies about them are stale
    InodeLock: who may change a directory or write to a file, and who waits for that
    RecordLocks: who has locked bytes of files, and who waits for that
    KnownNodes
    DeviceFiles: the devices' nodes, and their directories
        Mounts: where trees of files appear
    PlaceholderDirs: the directories that stand for those that exist only in a sandbox
    AttributeFile: the position in an open file of /sys, and what has been read
    rights.acts: how many threads act as a user that nobody may trace

The tests hold all threads to this (``tests/lock_watch.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

watch: Callable[[str, bool], Any] | None = None
"""Makes the locks if the tests watch them: it gets the name, and whether it is an RLock."""


def new_lock(name: str) -> threading.Lock:
    """Return a new lock; its name gives its place in the order."""
    lock: threading.Lock = threading.Lock() if watch is None else watch(name, False)
    return lock


def new_rlock(name: str) -> threading.RLock:
    """Return a lock that its owner may take again."""
    lock: threading.RLock = threading.RLock() if watch is None else watch(name, True)
    return lock
