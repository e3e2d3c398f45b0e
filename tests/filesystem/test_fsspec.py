"""examples/fsspecfs.py: what fsspec knows by a URL, used by real programs."""

from __future__ import annotations

import errno
import functools
import http.server
import io
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import EXAMPLES, PATIENCE_S, Serve
from .shell import shell

pytest.importorskip("fsspec")

pytestmark = pytest.mark.usefixtures("mounts")

Command = Callable[..., subprocess.CompletedProcess[str]]
Show = Callable[[str], Path]

SPEC = f"{EXAMPLES}/fsspecfs.py,url="


def sh(directory: Path, script: str) -> str:
    return shell(directory, script, errexit=False).replace(str(directory), "HERE")


@pytest.fixture
def show(serve: Serve, directory: Path) -> Iterator[Show]:
    """Mounts a URL; whoever serves it complains about nothing."""
    servers = []

    def mount(url: str) -> Path:
        servers.append(serve(SPEC + url, str(directory)))
        assert servers[-1].line() == str(directory)
        return directory

    yield mount
    for server in servers:
        server.process.terminate()
        assert server.end() == (0, "")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "d/e").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "d/numbers").write_text("".join(f"{number}\n" for number in range(100_000)))
    (top / "d/e/needle").write_text("needle\n")
    (top / "none").touch()
    (top / "d/a b%20#ü?&").write_text("odd\n")
    return top


class Handler(http.server.SimpleHTTPRequestHandler):
    """Gives out files as a whole, as Python's own server does."""

    def log_message(self, *_: object) -> None:
        pass


class PartHandler(Handler):
    """Gives out parts of them, too, as most other servers do."""

    def send_head(self) -> io.BytesIO | None:
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            return super().send_head()  # type: ignore[return-value]
        content = Path(path).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            low, high = int(asked[1]), min(int(asked[2]) + 1, len(content))
            self.send_header("Content-Range", f"bytes {low}-{high - 1}/{len(content)}")
            content = content[low:high]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)


@contextmanager
def site(tree: Path, handler: type[Handler]) -> Iterator[str]:
    """Serve a directory on the web, and give its URL."""
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=tree)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(params=["local", "zip", "http", "http-in-parts"])
def shown(request: pytest.FixtureRequest, tree: Path, show: Show, tmp_path: Path) -> Iterator[Path]:
    """The tree, in several ways."""
    if request.param.startswith("http"):
        pytest.importorskip("aiohttp")
        with site(tree, Handler if request.param == "http" else PartHandler) as url:
            yield show(url)
    elif request.param == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(tree.rglob("*")):
                packed.write(path, path.relative_to(tree))
        yield show(f"zip://::{tmp_path}/a.zip")
    else:
        yield show(f"file://{tree}")


def test_a_tree(shown: Path, tree: Path) -> None:
    for script in (
        # As soon as it is mounted: nobody has listed these directories yet.
        "cat d/e/needle; cat d/nothing/at/all; ls nothing",
        "find . | sort; find . -type f -printf '%P %s\\n' | sort",
        "grep -r needle . ; find . -type f -exec sha256sum {} + | sort",
        "tail -c 1000 d/numbers; head -c 300000 d/numbers | tail -n 1; cat d/a*",
        "cat d; cd none",
    ):
        assert sh(shown, script) == sh(tree, script)
    subprocess.run(["diff", "-r", shown, tree], check=True, timeout=PATIENCE_S)


def test_many_threads(shown: Path) -> None:
    """One position is enough for all that have the file open."""
    script = "for i in {1..8}; do (cat d/numbers | sha256sum) & done; wait"
    assert len(set(sh(shown, script).splitlines())) == 1


@pytest.mark.parametrize("shown", ["zip", "http"], indirect=True)
def test_what_cannot_be_changed(shown: Path) -> None:
    script = "echo >new; mkdir m; rm none; rmdir empty; mv none x; echo >>none; touch none"
    lines = sh(shown, script).splitlines()
    assert len(lines) == 7
    assert all("Read-only file system" in line for line in lines)


SCRIPT = """
mkdir -p d/e; echo one >d/a; echo two >>d/a; cat d/a; cp d/a d/b; cmp d/a d/b
mv d/a d/e/c; ls d d/e; mv -T d/e f; cat f/c; find . | sort
printf XX | dd of=d/b bs=1 seek=2 conv=notrunc status=none; cat d/b
truncate -s 3 d/b; wc -c <d/b; truncate -s 5000 d/b; tail -c 4000 d/b | od -c | head -n 1
sed -i s/X/Y/g d/b; head -c 3 d/b; echo
exec 3<>d/b; echo start >&3; head -c 5 d/b; rm d/b; head -c 2 <&3; exec 3>&-; ls d
rm none; rmdir f; rmdir d; ls d; mkdir f; mv f/c d; ls
seq 100000 >numbers; sort -R numbers | sort -n | cmp - numbers; sha256sum <numbers
echo x >'a*b'; echo y >aab; mv 'a*b' new; cat new aab; mv new aab; cat aab; mv -T f aab
tar -cf tar numbers aab; tar -df tar; mkdir out; tar -xmf tar -C out
cmp numbers out/numbers; rm tar
ln -sf x y 2>/dev/null || echo no links; touch numbers && ls
"""


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_changes(show: Show, tmp_path: Path, kind: str) -> None:
    """Those that fsspec has are the same as on an ordinary directory."""
    (tmp_path / "ordinary").mkdir()
    (tmp_path / "source").mkdir()
    expected = sh(tmp_path / "ordinary", SCRIPT.replace("ln -sf x y", "false"))
    shown = show("memory://" if kind == "memory" else f"file://{tmp_path}/source")
    assert sh(shown, SCRIPT) == expected
    if kind == "file":
        subprocess.run(["diff", "-r", tmp_path / "ordinary", tmp_path / "source"], check=True)


def test_a_database(show: Show, tmp_path: Path) -> None:
    """Its pages are written here and there."""
    shown = show(f"file://{tmp_path}")
    connection = sqlite3.connect(shown / "db", isolation_level=None)
    connection.execute("create table t (n)")
    connection.execute("begin")
    connection.executemany("insert into t values (?)", ((number,) for number in range(5000)))
    connection.execute("commit")
    connection.execute("delete from t where n % 2")
    connection.close()
    with sqlite3.connect(tmp_path / "db") as there:
        assert there.execute("select count(*), sum(n) from t").fetchall() == [(2500, 6247500)]
        assert there.execute("pragma integrity_check").fetchall() == [("ok",)]
    there.close()


def test_when_it_is_stored(show: Show, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shown = show(f"file://{source}")
    with open(shown / "file", "wb", buffering=0) as file:
        file.write(b"one")
        assert (source / "file").read_bytes() == b""
        assert (shown / "file").read_bytes() == b"one"
        assert (shown / "file").stat().st_size == 3
        os.fsync(file.fileno())
        assert (source / "file").read_bytes() == b"one"
        file.write(b"two")
        os.rename(shown / "file", shown / "renamed")
    assert (source / "renamed").read_bytes() == b"onetwo"
    assert os.listdir(source) == ["renamed"]
    # What has no name any longer is stored nowhere.
    with open(shown / "renamed", "r+b", buffering=0) as file:
        os.unlink(shown / "renamed")
        file.write(b"gone")
        assert os.fstat(file.fileno()).st_size == 6
    assert os.listdir(source) == []


def test_what_is_stored_is_not_stored_again(show: Show, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shown = show(f"file://{source}")
    with open(shown / "file", "wb", buffering=0) as file:
        file.write(b"text")
        os.fsync(file.fileno())
        (source / "file").unlink()
    assert os.listdir(source) == []


def test_close_tells_that_it_cannot_be_stored(
    serve: Serve, directory: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    server = serve(f"{SPEC}file://{source}", str(directory))
    assert server.line() == str(directory)
    descriptor = os.open(directory / "d/file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"text")
    shutil.rmtree(source / "d")
    with pytest.raises(FileNotFoundError):
        os.close(descriptor)
    server.process.terminate()
    # That was tried once more, and then it was lost.
    assert server.end()[1].count("Spooled.release raised FileNotFoundError\n") == 1


def test_what_fsspec_cannot(show: Show, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "file").write_text("text")
    (source / "file").chmod(0o640)
    shown = show(f"file://{source}")
    file = shown / "file"
    assert file.stat().st_mode == 0o100640
    os.utime(file)
    file.chmod(0o640)
    changes: list[tuple[int, Callable[[], None]]] = [
        (errno.EPERM, lambda: file.chmod(0o600)),
        (errno.EPERM, lambda: os.utime(file, (1, 1))),
        (errno.EPERM, lambda: os.link(file, shown / "link")),
        (errno.EPERM, lambda: os.symlink("file", shown / "link")),
        (errno.EEXIST, lambda: os.mkdir(shown / "d")),
        (errno.ENOENT, lambda: os.unlink(shown / "none")),
    ]
    for number, change in changes:
        with pytest.raises(OSError, match=os.strerror(number)):
            change()


def test_what_changes_there_is_seen(show: Show, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("one")
    shown = show(f"file://{source},cache_s=0")
    assert (shown / "a").read_text() == "one"
    (source / "a").write_text("and more")
    assert (shown / "a").read_text() == "and more"
    (source / "a").unlink()
    (source / "a").mkdir()
    assert os.listdir(shown / "a") == []
    (source / "a").rmdir()
    assert not (shown / "a").exists()
    os.mkfifo(source / "fifo")
    assert (shown / "fifo").is_fifo()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("xyz://a", "Protocol not known: xyz"),
        ("/nothing/there", "No such file or directory"),
        ("memory:///nothing", "No such file or directory"),
        (f"{SPEC.partition(',')[0]}", "Not a directory"),
        ("zip://::/nothing/there.zip", "No such file or directory"),
    ],
)
def test_what_cannot_be_mounted(command: Command, directory: Path, url: str, message: str) -> None:
    done = command("mount", SPEC + url, str(directory))
    assert (done.returncode, done.stderr) == (
        1,
        f"recuse: {EXAMPLES}/fsspecfs.py: {url}: {message}\n",
    )


def test_a_damaged_zip_is_logged_once(serve: Serve, directory: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("d/damaged", os.urandom(1 << 18))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[1 << 17] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    server = serve(f"{SPEC}zip://::{tmp_path}/a.zip", str(directory))
    assert server.line()
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (directory / "d/damaged").read_bytes()
    server.process.terminate()
    status, said = server.end()
    assert status == 0
    assert re.fullmatch(r".*'d/damaged': BadZipFile: Bad CRC-32 .*\n", said)


def test_a_site_that_is_not_there(command: Command, directory: Path) -> None:
    pytest.importorskip("aiohttp")
    done = command("mount", f"{SPEC}http://127.0.0.1:1/", str(directory))
    assert done.returncode == 1
    message = f"recuse: {EXAMPLES}/fsspecfs.py: http://127.0.0.1:1/: Cannot connect"
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_without_fsspec(command: Command, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "fsspec.py").write_text(
        "raise ModuleNotFoundError('No module named fsspec', name='fsspec')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = command("mount", f"{SPEC}memory://", str(directory), env=environment)
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: fsspec is needed: pip install fsspec\n")
    assert done.stderr.count("\n") == 1
