"""How the two halves are joined.

inprocess   the server half runs in the process, and in the threads, of the kernel half
socket      the server half runs in another process: the kernel half's side of the socket
listen      the server half's side of the socket
packets     the messages on it
devcuse     the kernel half is Linux: CUSE
devfuse     the kernel half is Linux: a FUSE mount, with files that can be mapped
directory   the names there
backing     a device there, and the memory behind its file
mount       the same, for a filesystem
mounting    how a mount of FUSE comes to be, by its options (mount_options); unmounting its end
guard       unmounts if the server is killed
"""
