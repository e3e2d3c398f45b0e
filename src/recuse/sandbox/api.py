"""Running programs in a sandbox, from Python."""

from __future__ import annotations

import errno
import signal
import subprocess
from collections.abc import Callable
from types import TracebackType
from typing import Any

from recuse.kernel.connection.connection import Tap
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.room import has_room
from recuse.sandbox.launch.parent import Command, Launch, Program
from recuse.sandbox.machine import Joinable, Machine
from recuse.sandbox.supervisor import Supervisor
from recuse.server.device import Device

_SETTLE_S = 1.0
"""How long the end of a run waits for the devices to hear that their files were closed."""


_DESCRIPTORS = 4
"""How many must be left for the calls of a program that is started."""


class Sandbox:
    """A small machine of its own, in which programs find devices under ``/dev``.

    ::

        with Sandbox(Echo()) as sandbox:
            sandbox.run(["sh", "-c", "echo hello > /dev/echo"], check=True)

    Everything else is as outside: the same files, network, user and terminal. The devices live
    from the ``with`` statement's beginning to its end; whatever program still runs then is killed.
    """

    def __init__(self, *devices: Device | Joinable, tap: Callable[[], Tap] | None = None) -> None:
        """Prepare.

        Args:
            devices: the devices that the programs find; programs may bring more, by ``/dev/cuse``.
            tap: makes what sees the messages of one device's connection.
        """
        self._devices = devices
        self._tap = tap
        self._machine: Machine | None = None
        self._lock = new_lock("Sandbox")
        self._running: list[tuple[Launch, Supervisor]] = []
        self.broken = False
        """Whether programs had to be killed since their calls could not be received."""

    def __enter__(self) -> Sandbox:
        """Bring the devices up.

        Raises:
            OSError: EEXIST for two devices of one name, EBUSY for two of one number.
        """
        machine = Machine(self._tap)
        try:
            for device in self._devices:
                machine.add(device)
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
        """Kill what still runs, release all files, end the devices."""
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
        """Kill all programs, and all that they started."""
        for launch, _ in list(self._running):
            launch.kill()

    def popen(self, argv: Command, **options: Any) -> Program:
        """Start a program, like :class:`subprocess.Popen`.

        Args:
            argv: the program, looked up along PATH, and its arguments.
            options: as for :class:`subprocess.Popen`, but for ``shell``, ``executable`` and
                ``preexec_fn``.

        Returns:
            A Popen whose ``wait`` returns when the program *and everything that it started* have
            ended; the return code is the program's.

        Raises:
            OSError: FileNotFoundError and so on, as Popen does.
            TypeError, ValueError: for other arguments than these.
            SandboxError: if sandboxes cannot work on this machine.
        """
        if self._machine is None:
            raise RuntimeError("a Sandbox runs programs only inside its with statement")
        self._forget_ended()
        launch = Launch(argv, **options)

        def broken() -> None:
            self.broken = True
            launch.kill()

        supervisor = Supervisor(self._machine, launch.listener, broken)
        supervisor.first_process = launch.program.pid
        try:
            self._machine.tasks.begins(launch.program.program_pid)
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
            subprocess.CalledProcessError: with ``check``, for a status other than 0.
            subprocess.TimeoutExpired: after ``timeout`` seconds; all of it has been killed then.
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


def _finish(launch: Launch, supervisor: Supervisor) -> None:
    """Close what belongs to a program that has ended."""
    # If the sandbox's first process was killed itself, other programs may go on. Nobody ends them,
    # so they are not waited for: their calls fail from now on.
    killed = launch.program.returncode == -signal.SIGKILL
    supervisor.join(_SETTLE_S if killed else None)
    supervisor.close()
    launch.close()
