"""The server half: what a device's author subclasses, and the session that calls it.

    device   Device: a character device; File: one open of it, with the operations as methods
    ioctl    the decorator that declares ioctl handlers
    memory   Memory: the calling program's memory, by address, during one ioctl
    request  Request: who asks; current_request()
    areas    Area: memory that programs map
    mapping  what programs map: Mapping, MmapRequest
    session  Session: takes requests as bytes, calls methods, gives answers as bytes

Parts of Session:

    pending_reply  a request, and its reply, which can be sent once
    dispatch       turns a request's bytes into a method's arguments, and its result into bytes
    runner         calls methods, and turns whatever they do into an answer
    loop           the event loop of ``async def`` methods
    attributes     checks a device's attributes; sysfs has what it declares for /sys
    ioctl_table    the handlers of a class; decorators has their types for type checkers
    arguments      the kinds of ioctl arguments
    ioctl_retries  one ioctl, in as many rounds as it takes
    mappings       what programs have mapped
    pollers        who waits for a file to become ready

Nothing here knows what is at the other end of the channel.  It imports only `recuse.wire` and
`recuse.runtime`.
"""
