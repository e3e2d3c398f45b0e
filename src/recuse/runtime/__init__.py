"""What every room needs of the interpreter: logging that never fails, threads that may.

`log` is for messages: whatever a program's logging does, the caller goes on. `threads` starts
threads: that there can be no more is an OSError like any other lack. `room` keeps some descriptors
free.
"""
