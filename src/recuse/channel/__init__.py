"""How the two halves are joined.

inprocess   the server half runs in the process, and in the threads, of the kernel half
socket      the server half runs in another process: the kernel half's side of the socket
listen      the server half's side of the socket
packets     the messages on it
devcuse     the kernel half is Linux: CUSE
mount       the kernel half is Linux: a filesystem on a FUSE mount, or devices as one
mounting    makes a FUSE mount, from its options (mount_options); unmounting ends it
guard       unmounts if the server is killed
"""
