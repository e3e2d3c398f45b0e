"""What these tests share: the examples, and how a call fails."""

import errno
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[3] / "examples"


def example(name: str) -> ModuleType:
    """One of the examples, as a module."""
    known = sys.modules.get(f"example_{name}")
    if known is not None:
        return known
    spec = util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error_of(call: Callable[..., object], *arguments: object, **named: object) -> str:
    """The name of the errno that a call raises; "" if it raises none."""
    try:
        call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""
