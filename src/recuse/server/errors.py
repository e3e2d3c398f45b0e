"""How the server half tells an author of a mistake."""


class Misuse(Exception):
    """An author's mistake that needs no traceback: one line in the log, EIO for the program.

    Its text follows the name of the author's method: "returned None, not bytes".
    """


def brief(value: object) -> str:
    """Return a value as a line of a log shows it: what it is, or only its type if that is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
