"""The kernel half: what fs/fuse does with the system calls of programs and a server's answers.

No system calls, no threads of its own and no waiting: the sandbox drives operations, a channel
reads and writes messages, and each of them does so by plain method calls from any thread.
"""
