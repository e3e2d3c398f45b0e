"""How the two halves are joined.

inprocess   the server half runs in the process, and in the threads, of the kernel half
socket      the server half runs in another process: the kernel half's side of the socket
listen      the server half's side of the socket
packets     the messages on it
"""
