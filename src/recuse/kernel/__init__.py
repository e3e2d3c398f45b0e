"""The kernel half: what fs/fuse does with programs' system calls and a server's answers.

It makes no system calls, has no threads of its own and never waits. The sandbox drives the
operations, and a channel reads and writes the messages. Both use plain method calls, from any
thread.
"""
