"""What all packages need of the interpreter: logging that never fails, threads that may fail.

`log` is for messages: the caller continues, whatever a program's logging does. `threads` starts
threads: if there can be no more, that is an OSError like any other shortage. `room` keeps some
descriptors free.
"""
