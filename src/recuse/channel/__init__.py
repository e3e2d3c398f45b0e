"""How the two halves are joined.

inprocess   the server half runs in the process, and in the threads, of the kernel half
socket      the server half runs in another process: the kernel half's side of the socket
listen      the server half's side of the socket
packets     the messages on it
devcuse     the kernel half is Linux: CUSE
devfuse     the kernel half is Linux: a FUSE mount, with files that can be mapped
directory   the names on that mount
backing     a device on that mount, and the memory behind its file
mount       the same, for a filesystem
mounting    makes a FUSE mount, from its options (mount_options); unmounting ends it
guard       unmounts if the server is killed
"""
