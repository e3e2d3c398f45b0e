# `make demo` shows what recuse does, `make test` checks all of it; both work on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
RECUSE := $(BIN)/recuse

# i2cdetect and its like are in /usr/sbin, which is not on everybody's path.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help install demo test test-vm test-arm64 lint bench clean

help:
	@echo 'make demo     run real programs against devices and filesystems written in Python'
	@echo 'make test     check style, types and behaviour'
	@echo 'make test-vm  test on other kernels, in a virtual machine'
	@echo 'make test-arm64  test on Linux for arm64, in a virtual machine'
	@echo 'make lint     check style and types only'
	@echo 'make bench    measure, also against other ways to do the same'
	@echo 'make install  only make .venv, with recuse and its tools in it'
	@echo 'make clean    remove .venv and what the tools left behind'

# The stamps say for which pyproject.toml and requirements.txt the environment was made.
$(BIN)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo 'No virtual environment: on Debian, apt-get install python3-venv'; rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

$(BIN)/.installed-bench: benchmarks/requirements.txt $(BIN)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

# Compiled here, since many environments (PYTHONDONTWRITEBYTECODE) let nobody else do it: then each
# start would compile all of it again.
install: $(BIN)/.installed
	@$(BIN)/python -m compileall -q src

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	@.ci/packages test
	$(BIN)/pytest -n 2

# Debian's kernels. What its CUSE does is recorded of the first one only.
test-vm: install
	@.ci/packages vm
	$(BIN)/python tests/vm/boot.py -k 6.1 -l 1800
	$(BIN)/python tests/vm/boot.py -k 6.12 -l 1800 --sandbox

test-arm64: install
	@.ci/packages arm64
	$(BIN)/python -m tests.vm.arm64

bench:
	@.ci/packages bench
	@$(MAKE) --no-print-directory $(BIN)/.installed-bench
	$(BIN)/python -m benchmarks

# Each line that is run is shown before what it prints.
define DEMO
show() {
    printf '\n$$ $(RECUSE) %s -- sh\n' "$$*"
    $(RECUSE) "$$@" -- sh -c \
        'while read -r line; do printf "    $$ %s\n" "$$line"; eval "$$line" </dev/null || exit; done'
}

echo 'A device is a class of a few lines. These are the programs of your system, unchanged:'
show run -d examples/echo.py <<'END'
ls -l /dev/echo
echo hello >/dev/echo
cat /dev/echo
END

echo
echo 'A device can have positions, and take arguments:'
show run -d examples/memory.py,size=0x1000 <<'END'
echo recuse | dd of=/dev/memory bs=1 seek=1000 status=none
dd if=/dev/memory bs=1 skip=1000 count=6 status=none | od -c
wc -c </dev/memory
END

echo
echo 'A camera, which shares memory with the programs that use it:'
mkdir -p build
if command -v v4l2-ctl >/dev/null; then
show run -d examples/camera.py <<'END'
v4l2-ctl -d 9 --set-ctrl brightness=120 --get-ctrl brightness,test_pattern
v4l2-ctl -d 9 --set-fmt-video pixelformat=MJPG --stream-mmap --stream-skip 9 --stream-count 1 --stream-to build/camera.jpeg
END
else
show run -d examples/camera.py <<'END'
$(BIN)/python -c 'from linuxpy.video.device import Device, VideoCapture as V; d = Device.from_id(9); d.open(); v = V(d); v.set_format(640, 480, "MJPG"); v.open(); open("build/camera.jpeg", "wb").write(bytes(next(iter(v))))'
END
fi
echo 'The picture that it took is in build/camera.jpeg.'

echo
echo 'A filesystem is a class, too. This one shows what is in an archive. Nothing is mounted for it:'
mkdir -p build/files
trap 'rmdir build/files; rm build/files.tar.gz' EXIT
tar -czf build/files.tar.gz --exclude=__pycache__ -C examples .
show run -m build/files=examples/archive.py,path=build/files.tar.gz <<'END'
ls build/files | wc -l
grep -rl tarfile build/files
cmp build/files/echo.py examples/echo.py && echo equal
END

echo
echo 'The same file, on a mount of Linux:'
if lack=$$($(RECUSE) mount --private examples/hellofs.py build/files -- true 2>&1); then
show mount --private examples/archive.py,path=build/files.tar.gz build/files <<'END'
cat build/files/hellofs.py | cmp - examples/hellofs.py && echo equal as well
END
else
echo "Nothing can be mounted here: $$lack"
fi

command -v i2cdetect >/dev/null || exit 0
echo
echo 'An I2C bus with a memory chip at 0x50 and a thermometer at 0x48, all of it ioctl calls:'
show run -d examples/eeprom.py,celsius=21.5 <<'END'
i2cdetect -y 9
i2cset -y 9 0x50 0x00 0x68 0x65 0x6c 0x6c 0x6f i
i2cdump -y -r 0x00-0x0f 9 0x50 b
# The temperature is 0x1580, in 1/256 of a degree; i2cget has the bytes the other way round.
i2cget -y 9 0x48 0x00 w
END

echo
echo 'Your turn: $(RECUSE) run -d examples/echo.py -- sh'
endef
export DEMO

demo: install
	@.ci/packages demo
	@sh -ec "$$DEMO"

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
