"""The battery finds in each environment what docs/reach.md says, neither less nor more."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from . import battery, records
from .containers import Missing, Unavailable
from .environments import CONTAINERS, HERE_NAME, Environment, here

Needs = Callable[..., Path]

# Those of which the others differ in one thing; the rest takes a minute.
QUICK = ("moby, root", "containerd, uid 1000")

PROGRAMS = {
    "camera": {"v4l2-ctl": "v4l-utils"},
    "sshfs": {
        "sshfs": "sshfs",
        "fusermount3": "fuse3",
        "git": "git",
        battery.SFTP_SERVER: "openssh-sftp-server",
    },
    "archivemount": {"archivemount": "archivemount", "fusermount": "fuse3"},
    "rclone": {"rclone": "rclone", "fusermount3": "fuse3"},
}
"""What checks need, and the Debian packages that have it."""

CASES = [
    pytest.param(
        environment,
        id=environment.name,
        marks=[] if environment.name in QUICK else [pytest.mark.slow],
    )
    for environment in CONTAINERS
]


def failures(checks: dict[str, tuple[str, str]]) -> dict[str, str]:
    """The checks that failed, and why."""
    return {check: why for check, (outcome, why) in checks.items() if outcome == "no"}


@pytest.mark.parametrize("check", battery.CHECKS)
def test_here(needs: Needs, check: str) -> None:
    for program, package in PROGRAMS.get(check, {}).items():
        needs(program, package=package)
    outcome, why = here(check).checks[check]
    if outcome == "-" and os.environ.get("CI") != "true":
        pytest.skip(why)
    assert outcome == "yes", why


@pytest.mark.timeout(400)
@pytest.mark.parametrize("environment", CASES)
def test_in_a_container(needs: Needs, environment: Environment) -> None:
    needs("runc", package="runc")
    for programs in PROGRAMS.values():
        for program, package in programs.items():
            needs(program, package=package)
    if environment.name == "systemd-nspawn":
        needs("systemd-nspawn", package="systemd-container")
    try:
        found = environment.run()
    except Missing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    except Unavailable as error:
        pytest.skip(str(error))
    known = records.read()[environment.name]
    assert failures(found.checks).keys() == failures(known.checks).keys(), found.checks


def test_the_page_has_what_is_recorded() -> None:
    page = records.PAGE.read_text()
    assert records.BEGIN + records.table(records.read()) + records.END in page
    assert records.read()[HERE_NAME].checks
