"""Unmodified programs on mounts: each does the same there as on an ordinary filesystem."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .places import Place, same, same_python

Needs = Callable[..., Path]


def test_coreutils(place: Place) -> None:
    output = same(
        place,
        """
umask 022
show() { stat -c '%n %A %h %s %Y' "$@" | sort; }
echo one >a; cat a; echo two >>a; wc a; tee b <a >/dev/null; cmp a b
touch -d @1000000000 a; chmod 640 a; ln a c; ln -s a l; readlink l; show a c
cp -a a copy; show copy; cp -p --sparse=always a sparse; mv copy moved; test ! -e copy
mkdir -p d/e/f; install -m 755 a d/e/run; show d/e/run | cut -c1-20; mv moved d/e/f/
touch -d @1000000000 d d/e d/e/f; show d d/e/f/moved | cut -d' ' -f1-3
head -c 100000 /dev/zero | tr '\\0' x >big; tail -c 5 big; echo; truncate -s 10 big; cat big; echo
truncate -s 5000 big; sha256sum big; dd if=a of=big bs=1 seek=8000 conv=notrunc status=none
sha256sum big
split -b 1000 big part.; cat part.* | cmp - big; ls part.*
mkfifo fifo; cat fifo & echo through >fifo; wait; rm fifo
ls -A | sort; ls -l d | tail -n +2 | cut -d' ' -f1-2
cp -r d d2; diff -r d d2 && echo equal; rm -r d2 part.*
rm c; stat -c %h a; rmdir d/e/f 2>&1 | sed 's/.*: //' || true; mv -n a b; ls
mv -f a b; ls; ln -sf b l; cat l; touch a; mv -T d x; ls x/e; shred -u a; ls
""",
    )
    assert "Directory not empty" in output


def test_times(place: Place) -> None:
    """Each call sets those that POSIX says, and leaves the others."""
    same(
        place,
        """
old() { touch -h -d @1000 "$@"; }
new() { for i; do stat -c '%n %Y' $i | awk '{print $1, ($2 > 1000 ? "new" : "old")}'; done; }
mkdir d e; touch d/a d/b; old d d/a; echo x >>d/a; new d d/a
old d; touch d/c; new d; old d; rm d/c; new d; old d; mkdir d/s; new d; old d; rmdir d/s; new d
old d d/a; ln d/a d/l; new d d/a; old d e d/a; mv d/a e/; new d e e/a
old e/a; chmod 600 e/a; new e/a; old e/a; truncate -s 100 e/a; new e/a; old e/a; : >e/a; new e/a
touch -d @-1000.25 e/a; stat -c %.2Y e/a
""",
    )


def test_times_of_reading(place: Place) -> None:
    """As the kernel notes them by itself elsewhere (relatime): once after each change."""
    same(
        place,
        """
old() { touch -h -a -d @1000 "$@"; }
new() { for i; do stat -c '%n %X' $i | awk '{print $1, ($2 > 1000 ? "new" : "old")}'; done; }
mkdir d; echo x >d/a; ln -s a d/l; old d d/a d/l; new d d/a d/l; cat d/a; new d d/a d/l
readlink d/l; new d d/l; ls d; new d; old d; stat d/a >/dev/null; new d
""",
    )


def test_shells_and_scripts(place: Place) -> None:
    output = same(
        place,
        """
cat >script <<'END'
#!/bin/bash
echo "I am $0 with $#"
END
chmod +x script; ./script 1 2; . ./script
mkdir 'with space'; cd 'with space'; touch a1 a2 b; echo a*; echo ../*; pwd | sed 's/.*test/HERE/'
exec 3<>file; echo hello >&3; cat file; exec 3>&-; [ file -nt ../script ] || [ file -ef file ]
set -o noclobber; { echo x >file; } 2>&1 | grep -c 'cannot overwrite'
for i in 1 2 3; do echo $i >>log & done; wait; sort log; chmod 0 log
""",
    )
    assert "I am ./script with 2" in output


def test_git(place: Place, needs: Needs) -> None:
    needs("git", "git")
    output = same(
        place,
        """
export GIT_AUTHOR_DATE='2020-01-01 00:00 +0000' GIT_COMMITTER_DATE='2020-01-01 00:00 +0000'
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
export GIT_CONFIG_NOSYSTEM=1
git init -q -b main one; cd one; git config core.fileMode true
for i in $(seq 40); do mkdir -p d$((i % 5)); echo $i >d$((i % 5))/f$i; done
ln -s d1 link; chmod +x d1/f1; git add .; git commit -qm first; git status --short
git rev-parse HEAD
git mv d2 moved; rm d3/f3; echo more >>d4/f4; git status --short; git commit -qam second
git checkout -q -b other HEAD~; echo other >new; git add new; git commit -qm third
git merge -q -m merged main; git log --format=%H; git gc -q; git fsck; git status --short
cd ..; git clone -q one two 2>&1; cd two; git log --format=%s; git diff --stat HEAD~ | tail -1
git stash list; git worktree add -q ../three HEAD~; ls ../three | wc -l
""",
    )
    assert "merged" in output


def test_make_and_gcc(place: Place, needs: Needs) -> None:
    needs("gcc", "gcc")
    needs("make", "make")
    output = same(
        place,
        """
for i in 1 2 3; do echo "int f$i(void) { return $i; }" >f$i.c; done
cat >main.c <<'END'
#include <stdio.h>
#include "all.h"
int main(void) { printf("%d\\n", f1() + f2() + f3()); return 0; }
END
echo 'int f1(void), f2(void), f3(void);' >all.h
cat >Makefile <<'END'
program: main.o f1.o f2.o f3.o
\tgcc -o $@ $^
main.o: all.h
%.o: %.c
\tgcc -g -c $<
END
make -s -j2; ./program; make; touch -d '+10 seconds' f2.c; make -n 2>/dev/null | head -1
gcc -shared -fPIC -o lib.so f1.c; ar rc all.a f1.o f2.o; nm all.a | grep -c ' T '
""",
    )
    assert output.startswith("6\n")


def test_sqlite(place: Place, needs: Needs) -> None:
    needs("sqlite3", "sqlite3")
    output = same(
        place,
        """
for mode in delete wal; do
sqlite3 $mode.db "pragma journal_mode=$mode; create table t (a integer primary key, b text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
insert into t select i, hex(zeroblob(i % 50)) from n;"
for i in 1 2 3; do sqlite3 -cmd '.timeout 20000' $mode.db "begin immediate;
update t set b = b || 'x'; insert into t(b) values ('$i'); commit;" & done; wait
sqlite3 $mode.db 'begin; delete from t; rollback; select count(*), sum(length(b)) from t;
create index i on t(b); vacuum; pragma integrity_check;'
sqlite3 $mode.db 'pragma mmap_size=1000000; select count(*) from t where b like "%x";'; done; ls
""",
    )
    assert output.count("ok") == 2


def test_tar(place: Place, needs: Needs) -> None:
    needs("tar", "tar")
    same(
        place,
        """
mkdir -p tree; cd tree; for d in $(seq 8); do mkdir -p d$d/s; for f in $(seq 25); do
echo $d $f >d$d/f$f; done; ln d$d/f1 d$d/s/hard; ln -s ../f2 d$d/s/soft; done; cd ..
truncate -s 100000 tree/hole; echo end >>tree/hole; chmod -R u=rwX,go= tree
tar -cSf all.tar --sort=name --mtime=@1000 tree; mkdir out; tar -xf all.tar -C out
diff -r --no-dereference tree out/tree && echo equal
tar -df all.tar --ignore-command-error 2>&1 | grep -v 'time differs' || true
find out -links 2 -type f | sort | head -3; find out | wc -l
""",
    )


def test_rsync(place: Place, needs: Needs) -> None:
    needs("rsync", "rsync")
    same(
        place,
        """
mkdir -p tree; for d in $(seq 10); do mkdir -p tree/d$d; for f in $(seq 30); do
echo $d $f >tree/d$d/f$f; done; done; ln -s d1 tree/l; ln tree/d1/f1 tree/hard
find tree -exec touch -h -d @5000 {} +; rsync -aH tree/ copy/
diff -r --no-dereference tree copy && echo equal
echo changed >tree/d2/f2; rm -r tree/d3; touch -d @1000 tree/d4/f4
rsync -aH --delete --itemize-changes tree/ copy/ | grep -v '^\\.d' | sort
diff -r --no-dereference tree copy && echo equal
rsync -aHn --itemize-changes tree/ copy/ | wc -l
""",
    )


def test_find(place: Place) -> None:
    output = same(
        place,
        """
umask 022
mkdir -p a/b/c a/d; touch a/1 a/b/2 a/b/c/3; ln -s ../1 a/b/l; ln a/1 a/d/1; chmod 4755 a/b/2
truncate -s 5000 a/d/big; touch -d @1000 a/b/c/3; mkfifo a/d/p
find . | sort; find . -type f -links 2 | sort; find . -perm -4000; find . -size +4k -type f
find . -newer a/b/c/3 -type f | sort; find -L . -type f | sort; find . -type l -o -type p | sort
find . -empty -type f | sort; find a/b -depth -delete; find . | sort
""",
    )
    assert "./a/b/c/3" in output


def test_room_and_holes(place: Place) -> None:
    output = same(
        place,
        """
show() { stat -c '%n %s %b' "$@"; sha256sum "$@"; }
fallocate -l 10000 a; show a; printf x >>a; show a; fallocate -n -o 40960 -l 8192 a; show a
truncate -s 10001 a; show a; head -c 40000 /dev/zero | tr '\\0' x >b
fallocate -p -o 5000 -l 20000 b; show b; tail -c +4990 b | od -c | head -n 5
head -c 20480 /dev/zero >c; echo end >>c; fallocate -d c; show c
fallocate -p -o 0 -l 100000 b; show b; fallocate -l 0 b 2>&1 | sed 's/.*: //'
fallocate -c -o 1 -l 5 b 2>/dev/null || echo refused
""",
    )
    assert "a 10001 24" in output


def test_mapped_files(place: Place) -> None:
    same_python(
        place,
        """
file = os.open("f", os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 3 * 4096)
shared, other = mmap.mmap(file, 0), mmap.mmap(file, 0)
private = mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE)
shared[:5] = b"hello"
print(other[:5], os.pread(file, 5, 0), open("f", "rb").read(5))
private[5000:5003] = b"abc"
print(shared[5000:5003], private[5000:5003], private[:5])
os.pwrite(file, b"written", 8192)
print(shared[8192:8199], other[8192:8199], private[8192:8199])
shared.flush()
os.unlink("f")
os.close(file)
shared[4090:4100] = b"0123456789"
print(other[4090:4100], fails(os.stat, "f"))
if os.fork() == 0:
    shared[0:1] = b"J"
    os._exit(0)
os.wait()
print(shared[:5])
""",
    )


def test_threads_at_once(place: Place) -> None:
    same_python(
        place,
        """
shared = os.open("shared", os.O_RDWR | os.O_CREAT)
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def work(number):
    os.mkdir(f"d{number}")
    for step in range(40):
        os.pwrite(shared, bytes([65 + number]) * 100, (step * 8 + number) * 100)
        os.write(log, b"%d %d\\n" % (number, step))
        path = f"d{number}/{step}"
        with open(path, "w") as file:
            file.write(path)
        os.rename(path, f"d{(number + 1) % 8}-{step}" if step % 2 else path + "x")
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
data = os.pread(shared, 1 << 20, 0)
pieces = [data[start : start + 100] for start in range(0, len(data), 100)]
print(len(data), all(pieces[i] == bytes([65 + i % 8]) * 100 for i in range(320)))
print(sorted(open("log").read().split("\\n")))
print(sorted(os.listdir(".")), [sorted(os.listdir(f"d{number}")) for number in range(8)])
""",
    )


def test_files_without_names(place: Place) -> None:
    same_python(
        place,
        """
file = os.open("f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
os.write(file, b"first")
os.unlink("f")
print(os.fstat(file).st_nlink, os.pread(file, 10, 0), fails(os.stat, "f"))
os.pwrite(file, b"more", 5)
os.fchmod(file, 0o640)
os.ftruncate(file, 7)
print(os.pread(file, 10, 0), oct(os.fstat(file).st_mode), os.fstat(file).st_size)
open("f", "w").write("second")
print(open("f").read(), os.pread(file, 10, 0))
one = os.open("f", os.O_RDWR)
open("g", "w").write("third")
os.rename("g", "f")
print(os.pread(one, 10, 0), open("f").read(), os.fstat(one).st_nlink, fails(os.stat, "g"))
os.mkdir("d")
directory = os.open("d", os.O_RDONLY)
os.rmdir("d")
print(os.fstat(directory).st_nlink, os.listdir(directory))
print(fails(os.open, "x", os.O_CREAT, dir_fd=directory))
os.mkdir("a"); os.mkdir("a/b"); open("a/b/c", "w").close()
print(fails(os.rmdir, "a/b"), fails(os.rename, "a", "a/b/d"), fails(os.unlink, "a"))
print(os.stat("a").st_nlink)
""",
    )


def test_locks(place: Place) -> None:
    same_python(
        place,
        """
one, other = (os.open("f", os.O_RDWR | os.O_CREAT) for _ in "12")
fcntl.flock(one, fcntl.LOCK_EX)
print(fails(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB))
fcntl.flock(one, fcntl.LOCK_UN)
print(fails(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB))
fcntl.lockf(one, fcntl.LOCK_EX, 10, 0)
if os.fork() == 0:
    print(fails(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5), flush=True)
    print(fails(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10), flush=True)
    os._exit(0)
os.wait()
""",
    )


def test_names(place: Place) -> None:
    same_python(
        place,
        """
for name in ("x" * 255, "\\u00e4\\u20ac", os.fsdecode(b"\\xff\\xfe"), "new\\nline", " ", "-r"):
    open(name, "w").write(ascii(name))
    print(ascii(name[:5]), open(name).read() == ascii(name))
print(ascii(sorted(os.listdir("."))))
print(fails(open, "x" * 256, "w"), fails(os.stat, "y" * 256), fails(os.mkdir, "z" * 300))
for number in range(500):
    os.close(os.open(f"many{number}", os.O_CREAT | os.O_WRONLY))
print(len(os.listdir(".")), sum(entry.is_file() for entry in os.scandir(".")))
""",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_owners(place: Place) -> None:
    """Who makes a file is its owner; a directory may give its group to what is made in it."""
    output = same_python(
        place,
        """
os.umask(0o022)
os.mkdir("group"); os.chown("group", 0, 1234); os.chmod("group", 0o2777)
os.mkdir("open"); os.chmod("open", 0o1777)
open("mine", "w").close(); os.chmod("mine", 0o600); open("open/mine", "w").close()
open("suid", "w").close(); os.chown("suid", 1000, 1000); os.chmod("suid", 0o6755)
os.chown("suid", 1001, -1)
os.mkdir("made"); os.chown("made", 1000, 1000)
here = os.open(".", os.O_RDONLY)
def show(*paths):
    for path in paths:
        status = os.lstat(path, dir_fd=here)
        print(path, oct(status.st_mode), status.st_uid, status.st_gid, flush=True)
show("suid", "group", "open", "mine", "made")
""",
    )
    assert "suid 0o100755 1001 1000" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_users(place: Place) -> None:
    same_python(
        place,
        """
os.umask(0o022)
os.mkdir("group"); os.chown("group", 0, 1234); os.chmod("group", 0o2777)
os.mkdir("open"); os.chmod("open", 0o1777)
open("mine", "w").close(); os.chmod("mine", 0o600); open("open/mine", "w").close()
if os.fork() == 0:
    os.setgroups([]); os.setgid(1000); os.setuid(1000)
    print(fails(open, "mine"), fails(open, "new", "w"), fails(os.chmod, "mine", 0o777))
    for place in ("group", "open"):
        os.mkdir(place + "/d"); open(place + "/f", "w").close(); os.symlink("x", place + "/l")
        os.mkfifo(place + "/p"); os.link(place + "/f", place + "/h")
    print(fails(os.unlink, "open/mine"), fails(os.rename, "open/mine", "group/x"))
    print(fails(os.chown, "open/f", 0, -1), fails(os.chmod, "open/f", 0o2755), flush=True)
    os._exit(0)
os.wait()
for place in ("group", "open"):
    for name in "dflph":
        status = os.lstat(f"{place}/{name}")
        print(place, name, oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink)
""",
    )


def test_attributes_with_names(place: Place) -> None:
    same_python(
        place,
        """
open("f", "w").close(); os.mkdir("d")
for path in ("f", "d"):
    print(fails(os.getxattr, path, "user.a"), os.listxattr(path))
    os.setxattr(path, "user.a", b"one\\0two")
    os.setxattr(path, "user.b", b"x" * 1000)
    print(os.getxattr(path, "user.a"), sorted(os.listxattr(path)), len(os.getxattr(path, "user.b")))
    print(fails(os.setxattr, path, "user.a", b"", os.XATTR_CREATE))
    print(fails(os.setxattr, path, "user.c", b"", os.XATTR_REPLACE))
    os.removexattr(path, "user.a")
    print(os.listxattr(path), fails(os.removexattr, path, "user.a"))
""",
    )


def test_inode_numbers(place: Place) -> None:
    """Listings and stat agree about them, also when the kernel has forgotten the files."""
    same_python(
        place,
        """
names = ["file", "directory", "link", "fifo"]
os.close(os.open("file", os.O_CREAT)); os.mkdir("directory"); os.symlink("x", "link")
os.mkfifo("fifo"); os.link("file", "hard")
def numbers():
    return {name: os.lstat(name).st_ino for name in sorted(os.listdir("."))}
before = numbers()
if os.geteuid() == 0:
    open("/proc/sys/vm/drop_caches", "w").write("2")
for _ in range(3):  # the kernel asks for attributes with the names once, and then for names only
    listed = [(entry.name, entry.inode()) for entry in os.scandir(".")]
    print(sorted(listed) == sorted(before.items()), len(set(before.values())))
print(numbers() == before)
""",
    )


def test_a_change_of_nothing(place: Place) -> None:
    same_python(
        place,
        """
os.close(os.open("f", os.O_CREAT))
for change in (lambda: os.chown("f", -1, -1), lambda: os.chmod("f", 0o644), lambda: os.utime("f")):
    before = os.stat("f")
    while os.stat("f").st_ctime_ns == before.st_ctime_ns:
        change()
print(os.stat("f").st_ctime_ns > before.st_ctime_ns)
""",
    )


def test_how_editors_save(place: Place, needs: Needs) -> None:
    """By writing the file anew, or a new file that takes the place of the old one."""
    needs("ed", "ed")
    needs("vim.tiny", "vim-tiny")
    output = same(
        place,
        """
umask 022; show() { stat -c '%A %h %s' text; cat text; ls -A; }
printf 'one\\ntwo\\n' >text; chmod 640 text; ln text other
printf '1a\\nbetween\\n.\\nw\\nq\\n' | ed -s text; show
for copy in yes no auto; do
TERM=dumb vim.tiny -Nu NONE -es -c "set backup backupcopy=$copy" -c '%s/n/N/gi' -c 'normal Goend' \\
  -c wq text; show; done; cat other
sed -i s/e/E/ text; show; perl -pi.bak -e 's/t/T/' text; show; cat text.bak
""",
    )
    assert "bETweeN" in output


def test_64_threads(place: Place) -> None:
    same_python(
        place,
        """
os.mkdir("all")
together = threading.Barrier(64)
problems = []
def work(number):
    together.wait()
    mine = f"all/{number}"
    for step in range(6):
        content = b"%d %d\\n" % (number, step) * 3000
        with open(mine, "wb") as file:
            file.write(content)
        with open(mine, "rb") as file:
            if file.read() != content:
                problems.append((number, step))
        os.rename(mine, "last"); os.link("first", f"all/{number}-{step}")
        if number not in map(int, (name.split("-")[0] for name in os.listdir("all"))):
            problems.append((number, "not listed"))
open("first", "w").close()
threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
number, step = open("last").readline().split()
print(problems, step, open("last").read() == f"{number} {step}\\n" * 3000)
print(sorted(os.listdir("all")), os.stat("first").st_nlink, os.stat("last").st_nlink)
""",
    )
