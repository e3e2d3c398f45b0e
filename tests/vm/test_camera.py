"""The camera on the real kernel's CUSE, which has no mmap: programs read frames there."""

from tests.conftest import Needs

from ..examples.test_camera import (  # noqa: F401
    Run,
    ctl,
    test_ffmpeg_says_why_it_cannot_stream,
    test_reading,
    test_v4l2_compliance_without_buffers,
    test_v4l2_ctl_lists_formats,
    test_v4l2_ctl_sets_controls,
    test_v4l2_ctl_shows_all,
)


def test_mapping_is_refused(run: Run, needs: Needs) -> None:
    needs("ffmpeg", "ffmpeg")
    outcome = run(
        "camera.py", "ffmpeg", "-v", "error", "-f", "v4l2", "-i", "/dev/video9", "-f", "null", "-"
    )
    assert outcome.returncode != 0
    assert b"mmap: No such device" in outcome.stderr
