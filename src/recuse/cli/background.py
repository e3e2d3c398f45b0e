"""`recuse mount --background`: the server is a new process, which goes on by itself.

It is a new interpreter, not a fork: threads, locks and whatever a module has opened do not get
halfway across. It speaks to the command on its standard output, where it says that it answers, and
on standard error; then it lets go of both.
"""

import contextlib
import json
import os
import selectors
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from recuse.channel.mount_options import given_descriptor
from recuse.cli.failure import USAGE, Failure, reporting
from recuse.runtime.interpreter import NAME, interpreter

_RUN = (
    "import json, sys; sys.path[:], arguments = json.load(sys.stdin);"
    "from recuse.cli.background import serve; sys.exit(serve(*arguments))"
)


def start_in_background(
    spec: str,
    directory: str,
    options: Sequence[str],
    trace: str | None = None,
    layout: str = "text",
    *,
    ready: Callable[[str], object] = print,
) -> int:
    """Start `serve` in a process of its own, and return when it answers, or with its exit status.

    `ready` is told where it is mounted.

    Raises:
        Failure: with a message for the user, who has none of the server's.
    """
    program = interpreter()
    if program is None:
        raise Failure(f"--background needs {NAME}, and there is none on the PATH")
    # What is written to a log later is of use there; elsewhere somebody else may read it.
    log = None if _is_log(2) else subprocess.PIPE
    if trace == "-" and log is not None:
        raise Failure("--background --trace: nobody would see it: add a file, --trace=FILE", USAGE)
    given = given_descriptor(directory)
    server = subprocess.Popen(
        # The arguments are for those who look for it in a list of processes.
        [program, "-c", _RUN, "recuse", "mount", spec, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        # If it is not open, the server says so.
        pass_fds=[given] if given is not None and os.path.lexists(directory) else [],
        start_new_session=True,
    )
    previous = {number: _have_it_end_us(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert server.stdin is not None
        with contextlib.suppress(BrokenPipeError), server.stdin as pipe:
            arguments = [spec, directory, list(options), trace, layout]
            pipe.write(json.dumps([sys.path, arguments]).encode())
        said = _listen(server)
        if said.endswith(b"\n"):
            ready(os.fsdecode(said[:-1]))
            server.returncode = 0  # it is nobody's child, but goes on
            return 0
        code = server.wait()
        if code <= 0:
            reason = signal.strsignal(-code) if code else "it did not say why"
            raise Failure(f"{spec}: the server has ended: {reason}", 128 - code if code else 1)
        return code
    except BaseException:
        server.terminate()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for stream in (server.stdout, server.stderr):
            if stream is not None:
                stream.close()


def _have_it_end_us(number: int) -> Any:
    """Have a signal end the server, too, unless it is ignored; returns what it did before."""

    def end(_number: int, _frame: object) -> None:
        raise Failure(f"not mounted: {signal.strsignal(number)}", 128 + number)

    previous = signal.getsignal(number)
    if previous is not signal.SIG_IGN:
        signal.signal(number, end)
    return previous


def _listen(server: "subprocess.Popen[bytes]") -> bytes:
    """Return the line that it says; meanwhile pass on what it complains about."""
    said = b""
    with selectors.DefaultSelector() as selector:
        for stream in filter(None, (server.stderr, server.stdout)):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and not said.endswith(b"\n"):
            # What is complained about comes first: nobody reads that afterwards.
            keys = [key for key, _ in selector.select()]
            for key in sorted(keys, key=lambda key: key.fileobj is server.stdout):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is server.stdout:
                    said += data
                else:
                    os.write(2, data)
    if said.endswith(b"\n") and server.stderr is not None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(server.stderr.fileno(), 65536):
                os.write(2, data)
    return said


def serve(spec: str, directory: str, options: Sequence[str], trace: str | None, layout: str) -> int:
    """What the new process does; returns the exit status."""
    from recuse.cli.mount import serve_mount

    return reporting(lambda: serve_mount(spec, directory, options, trace, layout, ready=_let_go))


def _let_go(path: str) -> None:
    """Say that it answers, and have nothing to do with the terminal from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    said = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1) if _is_log(2) else (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    with contextlib.suppress(BrokenPipeError):
        os.write(said, os.fsencode(f"{path}\n"))
    os.close(said)


def _is_log(number: int) -> bool:
    """Whether a descriptor is a file, or systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(number)
    except OSError:
        return False
    journal = os.environ.get("JOURNAL_STREAM")
    return stat.S_ISREG(status.st_mode) or f"{status.st_dev}:{status.st_ino}" == journal
