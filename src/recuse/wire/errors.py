"""The one exception of this package."""


class WireError(ValueError):
    """Bytes that are not a well-formed message or structure, or a value that its field cannot hold.

    Decoders raise nothing else, whatever bytes they are given.
    """
