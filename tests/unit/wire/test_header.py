"""The declarations, compared by a C compiler with the protocol's own header."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse.wire import cuse, filesystem, fuse, ioctl, notify, uring
from recuse.wire.declare import Structure

HEADER = "/usr/include/linux/fuse.h"
MODULES = (fuse, filesystem, notify, cuse, uring)

# What headers older than 7.45 may lack, such as the 7.38 of Debian 12.
NEWER_STRUCTURES = {
    "fuse_backing_map",
    "fuse_copy_file_range_out",
    "fuse_notify_prune_out",
    "fuse_statx",
    "fuse_statx_in",
    "fuse_statx_out",
    "fuse_supp_groups",
    "fuse_sx_time",
    "fuse_uring_cmd_req",
    "fuse_uring_ent_in_out",
}
NEWER_FIELDS = {
    "fuse_init_out.max_stack_depth",
    "fuse_init_out.request_timeout",
    "fuse_open_out.backing_id",
}
NEWER_CONSTANTS = {
    "FOPEN_PASSTHROUGH": 1 << 7,
    "FUSE_ALLOW_IDMAP": 1 << 40,
    "FUSE_COPY_FILE_RANGE_64": 53,
    "FUSE_CREATE_SUPP_GROUP": 1 << 34,
    "FUSE_DEV_IOC_BACKING_CLOSE": 0x4004E502,
    "FUSE_DEV_IOC_BACKING_OPEN": 0x4010E501,
    "FUSE_DEV_IOC_SYNC_INIT": 0xE503,
    "FUSE_DIRECT_IO_ALLOW_MMAP": 1 << 36,
    "FUSE_EXT_GROUPS": 32,
    "FUSE_HAS_RESEND": 1 << 39,
    "FUSE_INVALID_UIDGID": 2**32 - 1,
    "FUSE_IO_URING_CMD_COMMIT_AND_FETCH": 2,
    "FUSE_IO_URING_CMD_REGISTER": 1,
    "FUSE_NOTIFY_INC_EPOCH": 8,
    "FUSE_NOTIFY_PRUNE": 9,
    "FUSE_NOTIFY_RESEND": 7,
    "FUSE_NO_EXPORT_SUPPORT": 1 << 38,
    "FUSE_OVER_IO_URING": 1 << 41,
    "FUSE_PASSTHROUGH": 1 << 37,
    "FUSE_REQUEST_TIMEOUT": 1 << 42,
    "FUSE_STATX": 52,
    "FUSE_UNIQUE_RESEND": 1 << 63,
    "FUSE_URING_IN_OUT_HEADER_SZ": 128,
    "FUSE_URING_OP_IN_OUT_SZ": 128,
}

SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "s32": 4, "s64": 8}

Ask = Callable[[dict[str, str]], dict[str, int]]


@pytest.fixture(scope="module")
def header(needs: Callable[..., Path]) -> str:
    """The header's text, without comments."""
    text = needs(HEADER, "linux-libc-dev").read_text(encoding="utf-8")
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@pytest.fixture
def ask(needs: Callable[..., Path], tmp_path: Path) -> Ask:
    """Has C compute expressions: name to text in, name to value (signed, 64 bits) out."""
    compiler = needs("cc", "gcc")

    def run(expressions: dict[str, str]) -> dict[str, int]:
        lines = [
            f'printf("{name} %lld\\n", (long long)({text}));' for name, text in expressions.items()
        ]
        source = tmp_path / "ask.c"
        source.write_text(
            "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n"
            f"#include <{os.path.relpath(HEADER, '/usr/include')}>\n"
            "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n",
            encoding="ascii",
        )
        program = tmp_path / "ask"
        subprocess.run([compiler, "-o", program, source], check=True)
        answers = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        return {name: int(value) for name, value in map(str.split, answers.splitlines())}

    return run


def size_of(type_name: str) -> int:
    name, _, length = type_name.rstrip("]").partition("[")
    if name in SIZES:
        return SIZES[name] * int(length or 1)
    inner: type[Structure] = getattr(filesystem, name)
    return inner.SIZE


def test_every_structure_is_laid_out_as_in_c(header: str, ask: Ask) -> None:
    in_c = {
        name: set(re.findall(r"(\w+)\s*(?:\[\w*\])?;", body))
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", header, re.DOTALL)
    }
    expressions: dict[str, str] = {}
    expected: dict[str, int] = {}
    missing: set[str] = set()
    for module in MODULES:
        for name, made in vars(module).items():
            if not (isinstance(made, type) and made.__module__ == module.__name__):
                continue
            assert issubclass(made, Structure)
            if name not in in_c:
                missing.add(name)
                continue
            expressions[name] = f"sizeof(struct {name})"
            expected[name] = made.SIZE
            grown = False
            for field in made.FIELDS:
                key = f"{name}.{field.name}"
                names = {field.name, f"__{field.name}"} & in_c[name]
                if not names:
                    missing.add(key)
                    grown = True
                elif not (grown and field.name == "unused"):  # the room it grew into
                    member = names.pop()
                    expressions[key] = f"offsetof(struct {name}, {member})"
                    expected[key] = field.offset
                    expressions[f"{key}:size"] = f"sizeof(((struct {name} *)0)->{member})"
                    expected[f"{key}:size"] = size_of(field.type)
    assert ask(expressions) == expected
    assert len(expected) > 400
    unknown = missing - NEWER_STRUCTURES - NEWER_FIELDS
    assert {name for name in unknown if not name.startswith("recuse_")} == {"create_out"}


def test_every_constant_is_that_of_the_header(header: str, ask: Ask) -> None:
    ours = {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, int) and not name.startswith("RECUSE_")
    }
    version = ours.pop("FUSE_KERNEL_MINOR_VERSION")
    defined = set(re.findall(r"\b[CF]\w+\b", header))
    missing = ours.keys() - defined
    values = ask({name: name for name in [*(ours.keys() & defined), "FUSE_KERNEL_MINOR_VERSION"]})
    in_header = values.pop("FUSE_KERNEL_MINOR_VERSION")
    for name, value in values.items():
        # As an int of C, 1 << 31 is negative, and as a long 1 << 63.
        assert ours[name] in {value, value + 2**32, value + 2**64}, name
    assert len(values) > 150
    assert missing <= NEWER_CONSTANTS.keys()
    assert {name: ours[name] for name in NEWER_CONSTANTS} == NEWER_CONSTANTS
    assert not missing or in_header < version


def test_ioctl_commands_are_those_of_c(header: str, ask: Ask) -> None:
    commands = {
        "_IO('a',0)": ioctl.IO("a", 0),
        "_IO(255,255)": ioctl.IO(255, 255),
        "_IOR('V',1,char[1])": ioctl.IOR("V", 1, 1),
        "_IOW('V',2,char[16383])": ioctl.IOW("V", 2, 16383),
        "_IOWR(229,3,long)": ioctl.IOWR(229, 3, 8),
    }
    assert ask({name: name for name in commands}) == commands
    cmd = str(ioctl.IOWR(229, 3, 8))
    assert ask(
        {f"_IOC_{part}": f"_IOC_{part}({cmd}u)" for part in ("DIR", "TYPE", "NR", "SIZE")}
    ) == {
        "_IOC_DIR": ioctl.IOC_READ | ioctl.IOC_WRITE,
        "_IOC_TYPE": 229,
        "_IOC_NR": 3,
        "_IOC_SIZE": 8,
    }
