"""Character devices and filesystems in userspace, including the kernel's part."""
