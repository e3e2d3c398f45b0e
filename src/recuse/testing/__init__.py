"""Test a filesystem without mounting it: no root, no /dev/fuse, no directory.

`TestMount` joins a filesystem with recuse's own kernel half. What a test does by its methods
becomes the requests that Linux would send.
"""

from recuse.testing.files import Endless, TestDirectory, TestFile
from recuse.testing.mapping import TestMapping
from recuse.testing.mount import Leak, TestMount
from recuse.testing.paths import PathCalls
from recuse.testing.recording import Sent

__all__ = [
    "Endless",
    "Leak",
    "PathCalls",
    "Sent",
    "TestDirectory",
    "TestFile",
    "TestMapping",
    "TestMount",
]
