/* Makes a new file by an ioctl of /dev/maker, and reads from it. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

struct request {
    unsigned number;
    int fd;
};

int main(void)
{
    struct request request = {1, -1};
    struct stat found;
    char text[100];
    int chip = open("/dev/maker", O_RDWR);

    if (chip < 0 || ioctl(chip, _IOWR('N', 1, struct request), &request)) {
        perror("maker");
        return 1;
    }
    ssize_t size = read(request.fd, text, sizeof text);
    fstat(request.fd, &found);
    printf("%u %.*s %o %x\n", request.number, (int)size, text, found.st_mode,
           fcntl(request.fd, F_GETFL));
    return 0;
}
