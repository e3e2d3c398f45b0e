"""The FUSE and CUSE protocol, 7.45: constants, structures, and their encoding and decoding.

No I/O and no state; only the standard library is imported.  Names are those of the kernel's header.
"""
