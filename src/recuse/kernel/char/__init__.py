"""Character devices: fs/fuse/cuse.c, and what of file.c and ioctl.c it uses."""
