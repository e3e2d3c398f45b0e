"""Running programs in a sandbox, from Python."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from recuse.kernel.connection.connection import Tap
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.room import has_room
from recuse.sandbox.launch.parent import Command, Launch, Program
from recuse.sandbox.machine import Joinable, Machine
from recuse.sandbox.supervisor import Supervisor
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.resolve import Path
from recuse.server.device import Device
from recuse.wire.ids import Tgid, Tid

if TYPE_CHECKING:
    from recuse.channel.socket_mount import RemoteFilesystem
    from recuse.server.filesystem.served import Served

P = TypeVar("P", bound=Path)

_SETTLE_S = 1.0
"""How long the end of a run waits until the devices know that their files were closed."""


_DESCRIPTORS = 4
"""How many descriptors must be free for the calls of a program that is started."""


class Sandbox:
    """Runs programs that find the given devices under ``/dev``, and the given filesystems.

    ::

        with Sandbox(Echo()) as sandbox:
            sandbox.run(["sh", "-c", "echo hello > /dev/echo"], check=True)

    Everything else is the same as outside: files, network, user and terminal. The devices exist
    inside the ``with`` statement. Programs that still run at its end are killed.
    """

    def __init__(
        self,
        *devices: Device | Joinable,
        mounts: Mapping[P, Served | RemoteFilesystem] | None = None,
        fuse: bool | None = None,
        tap: Callable[[], Tap] | None = None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            devices: the devices that programs find. Programs can add more through ``/dev/cuse``.
            mounts: the filesystems that programs find, by the directories that they cover.
            fuse: whether programs may mount filesystems that they serve through ``/dev/fuse``. More
                system calls are trapped for that. By default they may if no device is given.
            tap: called for each connection of a device or filesystem; returns a Tap that sees its
                messages.
        """
        self._fuse = bool(mounts) or not devices if fuse is None else fuse
        self._devices = devices
        self._mounts: list[tuple[Path, Served | RemoteFilesystem]] = list((mounts or {}).items())
        self._tap = tap
        self._machine: Machine | None = None
        self._lock = new_lock("Sandbox")
        self._running: list[tuple[Launch, Supervisor]] = []
        self.broken = False
        """Whether programs had to be killed because their calls could not be received."""

    def __enter__(self) -> Sandbox:
        """Add the devices and filesystems.

        Raises:
            OSError: EEXIST if two devices have the same name, EBUSY if the same number; for a
                filesystem, ENOENT or ENOTDIR if there is no such directory, EBUSY if there are two
                for it; ECONNREFUSED if it cannot be served.
        """
        machine = Machine(self._tap, fuse=self._fuse)
        try:
            for device in self._devices:
                machine.add(device)
            for path, filesystem in sorted(self._mounts, key=_depth):
                machine.mount(filesystem, path)
        except BaseException:
            machine.close()
            raise
        self._machine = machine
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill programs that still run, release all files, close the devices."""
        self.kill()
        with self._lock:
            running = list(self._running)
            self._running.clear()
        for launch, supervisor in running:
            launch.program.wait()
            _finish(launch, supervisor)
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.close()

    def kill(self) -> None:
        """Kill all programs, and everything that they started."""
        for launch, _ in list(self._running):
            launch.kill()

    def popen(self, argv: Command, **options: Any) -> Program:
        """Start a program, like :class:`subprocess.Popen`.

        Args:
            argv: the program, looked up along PATH, and its arguments.
            options: as for :class:`subprocess.Popen`, except ``shell``, ``executable`` and
                ``preexec_fn``.

        Returns:
            A Popen whose ``wait`` returns when the program *and everything that it started* have
            ended. The return code is the program's.

        Raises:
            OSError: as Popen does: FileNotFoundError, PermissionError, ...
            TypeError, ValueError: the options are not allowed, or there is no program.
            SandboxError: sandboxes cannot work on this machine.
        """
        if self._machine is None:
            raise RuntimeError("start programs inside the Sandbox's with statement")
        self._forget_ended()
        launch = Launch(argv, filesystems=self._fuse or bool(self._mounts), **options)

        def broken() -> None:
            self.broken = True
            launch.kill()

        supervisor = Supervisor(self._machine, launch.listener, broken)
        supervisor.first_process = launch.program.pid
        try:
            self._machine.tasks.begins(Tgid(Tid(launch.program.program_pid)))
            supervisor.start()
            if not has_room(_DESCRIPTORS):
                raise os_error(errno.ENFILE)
            launch.execute()
        except BaseException:
            launch.abandon()
            supervisor.join()
            supervisor.close()
            raise
        with self._lock:
            self._running.append((launch, supervisor))
        return launch.program

    def _forget_ended(self) -> None:
        with self._lock:
            ended = [entry for entry in self._running if entry[0].program.poll() is not None]
            for entry in ended:
                self._running.remove(entry)
        for launch, supervisor in ended:
            _finish(launch, supervisor)
        if ended and self._machine is not None:
            self._machine.memory_maps.settle()
            self._machine.files.settle(_SETTLE_S)

    def run(
        self,
        argv: Command,
        *,
        input: Any = None,  # noqa: A002 - as subprocess.run has it
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program to its end, like :func:`subprocess.run`, with the same arguments.

        Raises:
            subprocess.CalledProcessError: with ``check``, if the status is not 0.
            subprocess.TimeoutExpired: after ``timeout`` seconds, with everything killed.
            OSError, SandboxError: as :meth:`popen`.
        """
        if input is not None:
            if options.get("stdin") is not None:
                raise ValueError("stdin and input arguments may not both be used")
            options["stdin"] = subprocess.PIPE
        if capture_output:
            if options.get("stdout") is not None or options.get("stderr") is not None:
                raise ValueError("stdout and stderr may not be used with capture_output")
            options["stdout"] = options["stderr"] = subprocess.PIPE
        program = self.popen(argv, **options)
        try:
            output, errors = program.communicate(input, timeout=timeout)
        except BaseException:
            self._kill(program)
            program.communicate()
            self._forget_ended()
            raise
        self._forget_ended()
        if check and program.returncode:
            raise subprocess.CalledProcessError(program.returncode, argv, output, errors)
        return subprocess.CompletedProcess(argv, program.returncode, output, errors)

    def _kill(self, program: Program) -> None:
        with self._lock:
            for launch, _ in self._running:
                if launch.program is program:
                    launch.kill()


def _depth(mount: tuple[Path, Served | RemoteFilesystem]) -> int:
    """How many directories are above: one that others are in is mounted before these."""
    return native_files.real_path(os.fsencode(mount[0])).count(b"/")


def _finish(launch: Launch, supervisor: Supervisor) -> None:
    """Close what belongs to a program that has ended."""
    # If the sandbox's first process was itself killed, other programs may go on. Nobody ends them,
    # so we do not wait for them: their calls fail from now on.
    killed = launch.program.returncode == -signal.SIGKILL
    supervisor.join(_SETTLE_S if killed else None)
    supervisor.close()
    launch.close()
