"""The server half: what a device's author subclasses, and the session that calls it.

    device   Device: a character device
    file     File: one open of it, with the operations as methods
    ioctl    the decorator that declares ioctl handlers, and the tables made of it
    memory   Memory: the calling program's memory, by address, during one ioctl
    request  Request: who asks; current_request()
    session  Session: takes requests as bytes, calls methods, gives answers as bytes
    exchange, dispatch, rounds, loop: what Session is made of

Nothing here knows what is at the other end of the channel.  Only `recuse.wire` is imported.
"""
