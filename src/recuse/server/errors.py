"""How the server half tells an author of a mistake."""


class Misuse(Exception):
    """An author's mistake that needs no traceback: one line in the log, EIO for the program."""
