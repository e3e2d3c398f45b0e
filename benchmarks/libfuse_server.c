/*
 * The benchmark's libfuse server: one file, "bench", on kernel FUSE with direct_io, and another one
 * that can be made and removed, "new".
 *
 *     libfuse_server [-s] MOUNTPOINT
 *
 * Reads are 'R' to any size, writes are thrown away, the ioctl fills its 16 bytes with 'R': as little
 * work as a server can do, on libfuse's low-level interface. Multi-threaded as libfuse comes, or
 * with -s single-threaded. Prints "ready" once it is mounted; SIGTERM unmounts it and ends it.
 *
 * SPDX-License-Identifier: MIT
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse3/fuse_lowlevel.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define NAME "bench"
#define FILE_INODE 2
#define NEW_NAME "new"
#define NEW_INODE 3
#define LARGEST (1 << 20)
#define IOCTL_SIZE 16
#define IOCTL_COMMAND _IOC(_IOC_READ, 'E', 0x18, IOCTL_SIZE)

static char fill[LARGEST];
static int new_is_there;

static int attributes(fuse_ino_t inode, struct stat *out)
{
    memset(out, 0, sizeof *out);
    out->st_ino = inode;
    out->st_nlink = 1;
    if (inode == FUSE_ROOT_ID) {
        out->st_mode = S_IFDIR | 0755;
        return 0;
    }
    if (inode == FILE_INODE) {
        out->st_mode = S_IFREG | 0666;
        out->st_size = LARGEST;
        return 0;
    }
    if (inode == NEW_INODE) {
        out->st_mode = S_IFREG | 0600;
        return 0;
    }
    return ENOENT;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.attr_timeout = 3600, .entry_timeout = 3600};

    if (parent == FUSE_ROOT_ID && strcmp(name, NAME) == 0)
        entry.ino = FILE_INODE;
    else if (parent == FUSE_ROOT_ID && strcmp(name, NEW_NAME) == 0 && new_is_there)
        entry.ino = NEW_INODE;
    if (attributes(entry.ino, &entry.attr))
        fuse_reply_err(request, ENOENT);
    else
        fuse_reply_entry(request, &entry);
}

static void on_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *file)
{
    struct fuse_entry_param entry = {.ino = NEW_INODE, .attr_timeout = 3600, .entry_timeout = 3600};

    (void)mode;
    if (parent != FUSE_ROOT_ID || strcmp(name, NEW_NAME) != 0) {
        fuse_reply_err(request, EACCES);
        return;
    }
    new_is_there = 1;
    attributes(NEW_INODE, &entry.attr);
    fuse_reply_create(request, &entry, file);
}

static void on_unlink(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    (void)parent, (void)name;
    new_is_there = 0;
    fuse_reply_err(request, 0);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    struct stat out;
    int error = attributes(inode, &out);

    (void)file;
    if (error)
        fuse_reply_err(request, error);
    else
        fuse_reply_attr(request, &out, 3600);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)inode;
    file->direct_io = 1;
    fuse_reply_open(request, file);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                    struct fuse_file_info *file)
{
    (void)inode, (void)offset, (void)file;
    fuse_reply_buf(request, fill, size < LARGEST ? size : LARGEST);
}

static void on_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t size,
                     off_t offset, struct fuse_file_info *file)
{
    (void)inode, (void)data, (void)offset, (void)file;
    fuse_reply_write(request, size);
}

static void on_ioctl(fuse_req_t request, fuse_ino_t inode, unsigned int command, void *argument,
                     struct fuse_file_info *file, unsigned int flags, const void *in,
                     size_t in_size, size_t out_size)
{
    (void)inode, (void)argument, (void)file, (void)flags, (void)in, (void)in_size;
    if (command != IOCTL_COMMAND || out_size != IOCTL_SIZE)
        fuse_reply_err(request, ENOTTY);
    else
        fuse_reply_ioctl(request, 0, fill, IOCTL_SIZE);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = on_lookup,
    .create = on_create,
    .unlink = on_unlink,
    .getattr = on_getattr,
    .open = on_open,
    .read = on_read,
    .write = on_write,
    .ioctl = on_ioctl,
};

int main(int argc, char **argv)
{
    int single = argc == 3 && strcmp(argv[1], "-s") == 0, status = 1;
    char *arguments[] = {argv[0], "-o", "fsname=recuse-bench", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, arguments);
    /* What fuse_main would use: no clone_fd, at most ten idle threads. */
    struct fuse_loop_config config = {.clone_fd = 0, .max_idle_threads = 10};
    struct fuse_session *session;

    if (argc != 2 + single) {
        fputs("usage: libfuse_server [-s] MOUNTPOINT\n", stderr);
        return 2;
    }
    memset(fill, 'R', sizeof fill);
    session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (!session)
        return 1;
    if (fuse_set_signal_handlers(session) == 0) {
        if (fuse_session_mount(session, argv[argc - 1]) == 0) {
            puts("ready");
            fflush(stdout);
            status = single ? fuse_session_loop(session) : fuse_session_loop_mt(session, &config);
            fuse_session_unmount(session);
        }
        fuse_remove_signal_handlers(session);
    }
    fuse_session_destroy(session);
    fuse_opt_free_args(&args);
    /* The loop returns the signal that ended it, which is how a benchmark ends. */
    return status < 0 || status == 1 ? 1 : 0;
}
