"""Character devices: fs/fuse/cuse.c, and the parts of file.c and ioctl.c that it uses."""
