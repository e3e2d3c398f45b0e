"""How the two halves are joined.

inprocess   the server half runs in the process, and in the threads, of the kernel half
"""
