"""The server half: what a device's author subclasses, and the session that calls it.

    device   Device: a character device
    file     File: one open of it, with the operations as methods
    ioctl    the decorator that declares ioctl handlers, and the tables made of it
    memory   Memory: the calling program's memory, by address, during one ioctl
    request  Request: who asks; current_request()
    areas    Area: memory that programs map
    mappings what programs have mapped: Mapping, MmapRequest
    session  Session: takes requests as bytes, calls methods, gives answers as bytes

What Session is made of:

    exchange    a request, and the single use of the way back
    dispatch    from a request's bytes to a method's arguments, from its result to an answer's bytes
    runner      calls methods, and turns whatever they do into an answer
    loop        the event loop of ``async def`` methods
    arguments   the kinds of ioctl arguments; decorators has their types for type checkers
    rounds      one ioctl, in as many rounds as it takes

Nothing here knows what is at the other end of the channel.  Only `recuse.wire` is imported.
"""
