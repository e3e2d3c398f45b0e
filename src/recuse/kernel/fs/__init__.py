"""The kernel's half of a filesystem: what fs/namei.c and fs/fuse do with system calls on files."""
