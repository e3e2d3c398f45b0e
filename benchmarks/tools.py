"""What the benchmark needs from the machine, each made or found when it is first asked for."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.processes import UnavailableError, output

HERE = Path(__file__).resolve().parent
SHARED_MEMORY = Path("/dev/shm")
LIBFUSE_EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")


@dataclass(frozen=True)
class Tools:
    """`directory` is temporary and ours; `peer_python` the interpreter with the peers' packages."""

    directory: Path
    peer_python: str

    def _compile(self, source: Path, flags: tuple[str, ...] = ()) -> str:
        compiler = shutil.which("cc")
        if not compiler:
            raise UnavailableError("no C compiler (cc)")
        program = self.directory / source.stem
        output([compiler, "-O2", "-o", str(program), str(source), *flags], 120)
        return str(program)

    @cache  # noqa: B019 - one Tools a run
    def client(self) -> str:
        return self._compile(HERE / "client.c", ("-pthread",))

    @cache  # noqa: B019
    def libfuse_server(self) -> str:
        return self._with_libfuse(HERE / "libfuse_server.c")

    @cache  # noqa: B019
    def libfuse_example(self, name: str) -> str:
        """A program that the package with libfuse's headers has as an example."""
        source = LIBFUSE_EXAMPLES / f"{name}.c"
        if not source.exists():
            raise UnavailableError(f"no {source} (libfuse3-dev)")
        return self._with_libfuse(source)

    def _with_libfuse(self, source: Path) -> str:
        if not shutil.which("pkg-config"):
            raise UnavailableError("no pkg-config")
        try:
            flags = output(["pkg-config", "--cflags", "--libs", "fuse3"], 30)
        except UnavailableError:
            raise UnavailableError("no libfuse 3 headers (libfuse3-dev)") from None
        return self._compile(source, tuple(flags.split()))

    def need_fuse(self) -> None:
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise UnavailableError("no /dev/fuse that can be opened")
        if os.geteuid() != 0 and not shutil.which("fusermount3"):
            raise UnavailableError("no fusermount3 (fuse3), which mounting without root takes")

    @cache  # noqa: B019
    def need_package(self, package: str) -> None:
        """A Python package that `peer_python` can import."""
        try:
            output([self.peer_python, "-c", f"import {package}"], 60)
        except UnavailableError as error:
            raise UnavailableError(f"no {package} in {self.peer_python} ({error})") from None

    def recuse(self) -> str:
        """The console script that belongs to this interpreter."""
        script = Path(sys.executable).parent / "recuse"
        if not script.exists():
            raise UnavailableError(f"no {script}")
        return str(script)
