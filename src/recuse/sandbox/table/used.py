"""The system calls that recuse traps, refuses or makes itself. Every start needs this table."""

from __future__ import annotations

from typing import Final

ROWS: Final = """
read                  0    63     3     3  rw           always
write                 1    64     4     4  rw           always
pread64              17    67   180   180  rw           always
pwrite64             18    68   181   181  rw           always
ioctl                16    29    54    54  control      always
openat              257    56   295  322-  opening      always
lseek                 8    62    19    19  rw           always
_llseek               .     .   140   140  rw           always       lseek
fstat                 5    80   108   108  status       always
fstat64               .     .   197   197  status       always       fstat
poll                  7     .   168   168  poll         always
ppoll               271    73   309   336  poll         always
ppoll_time64          .     .   414   414  poll         always       ppoll
epoll_wait          232     .   256  252-  epoll        always
epoll_pwait         281    22   319  346-  epoll        always
select               23     .    82     .  poll         always
_newselect            .     .   142   142  poll         always       select
pselect6            270    72   308   335  poll         always
pselect6_time64       .     .   413   413  poll         always       pselect6
epoll_ctl           233    21   255   251  epoll        always
epoll_pwait2        441   441   441  441-  epoll        always
readv                19    65   145   145  rw           always
writev               20    66   146   146  rw           always
preadv              295    69   333   361  rw           always
pwritev             296    70   334   362  rw           always
preadv2             327   286   378   392  rw           always
pwritev2            328   287   379   393  rw           always
sendfile             40    71   187   187  rw           always
sendfile64            .     .   239   239  rw           always       sendfile
splice              275    76   313   340  rw           always
tee                 276    77   315   342  rw           always
copy_file_range     326   285   377   391  rw           always
mremap               25   216   163  163-  mmap         always
mmap                  .     .    90     .  mmap         always
io_submit           209     2   248   246  aio          unless-ours
getdents64          217    61   220  217-  listing      always
getdents             78     .  141-  141-  listing      always
fchmod               91    52    94    94  attributes   always
fchown               93    55    95    95  attributes   always
fchown32              .     .   207   207  attributes   always       fchown
fgetxattr           193    10   231  231-  xattrs       always
flistxattr          196    13   234  234-  xattrs       always
newfstatat          262    79     .     .  status       always
fstatat64             .     .   300   327  status       always       newfstatat
statx               332   291   383   397  status       always
open                  2     .     5    5-  opening      always
stat                  4     .   106  106-  status       always
stat64                .     .   195  195-  status       always       stat
lstat                 6     .   107  107-  status       always
lstat64               .     .   196  196-  status       always       lstat
creat                85     .     8    8-  opening      always
openat2             437   437   437  437-  opening      always
truncate             76    45    92   92-  opening      always
truncate64            .     .   193  193-  opening      always       truncate
access               21     .    33   33-  status       always
faccessat           269    48   307  334-  status       always
faccessat2          439   439   439  439-  status       always
readlink             89     .    85   85-  status       always
readlinkat          267    78   305  332-  status       always
chmod                90     .    15   15-  attributes   always
fchmodat            268    53   306  333-  attributes   always
fchmodat2           452   452   452  452-  attributes   always
chown                92     .   182  182-  attributes   always
chown32               .     .   212  212-  attributes   always       chown
lchown               94     .    16   16-  attributes   always
lchown32              .     .   198  198-  attributes   always       lchown
fchownat            260    54   298  325-  attributes   always
utime               132     .    30     .  attributes   always
utimes              235     .   271  269-  attributes   always
futimesat           261     .   299  326-  attributes   always
utimensat           280    88   320  348-  attributes   always
utimensat_time64      .     .   412  412-  attributes   always       utimensat
getxattr            191     8   229  229-  xattrs       always
lgetxattr           192     9   230  230-  xattrs       always
listxattr           194    11   232  232-  xattrs       always
llistxattr          195    12   233  233-  xattrs       always
chdir                80    49    12   12-  workdir      always
getcwd               79    17   183  183-  workdir      always
flock                73    32   143   143  locks        always
mkdir                83     .    39   39-  names        always
mkdirat             258    34   296  323-  names        always
mknod               133     .    14   14-  names        always
mknodat             259    33   297  324-  names        always
symlink              88     .    83   83-  names        always
symlinkat           266    36   304  331-  names        always
link                 86     .     9    9-  names        always
linkat              265    37   303  330-  names        always
rename               82     .    38   38-  names        always
renameat            264    38   302  329-  names        always
renameat2           316   276   353  382-  names        always
unlink               87     .    10   10-  names        always
unlinkat            263    35   301  328-  names        always
rmdir                84     .    40   40-  names        always
execve               59   221    11    11  processes    always
execveat            322   281   358   387  processes    always
unshare             272    97   310   337  processes    always
setns               308   268   346   375  processes    always
chroot              161    51    61    61  processes    always
pivot_root          155    41   217   218  processes    always
sendto               44   206   369   290  processes    always
socketcall            .     .   102     .  processes    always
send                  .     .     .   289  processes    always       sendto
sendmsg              46   211   370   296  passing      unless-lent
sendmmsg            307   269   345   374  passing      always
recvfrom             45   207   371   292  processes    always
recv                  .     .     .   291  processes    always       recvfrom
recvmsg              47   212   372   297  processes    always
recvmmsg            299   243   337   365  processes    always
recvmmsg_time64       .     .   417   417  processes    always       recvmmsg
shutdown             48   210   373   293  processes    always
getsockopt           55   209   365   295  processes    always
setsockopt           54   208   366   294  processes    always
getsockname          51   204   367   286  processes    always
getpeername          52   205   368   287  processes    always
bind                 49   200   361   282  names        always
connect              42   203   362   283  processes    always
listen               50   201   363   284  processes    always
accept               43   202     .   285  processes    always
accept4             288   242   364   366  processes    always
setuid              105   146    23    23  processes    always
setuid32              .     .   213   213  processes    always       setuid
setgid              106   144    46    46  processes    always
setgid32              .     .   214   214  processes    always       setgid
setreuid            113   145    70    70  processes    always
setreuid32            .     .   203   203  processes    always       setreuid
setregid            114   143    71    71  processes    always
setregid32            .     .   204   204  processes    always       setregid
setresuid           117   147   164   164  processes    always
setresuid32           .     .   208   208  processes    always       setresuid
setresgid           119   149   170   170  processes    always
setresgid32           .     .   210   210  processes    always       setresgid
setfsuid            122   151   138   138  processes    always
setfsuid32            .     .   215   215  processes    always       setfsuid
setfsgid            123   152   139   139  processes    always
setfsgid32            .     .   216   216  processes    always       setfsgid
setgroups           116   159    81    81  processes    always
setgroups32           .     .   206   206  processes    always       setgroups
capset              126    91   185   185  processes    always
landlock_restrict_self  446   446   446   446  processes    always
statfs              137    43    99   99-  filesystems  always
statfs64              .     .   268  266-  filesystems  always       statfs
fstatfs             138    44   100  100-  filesystems  always
fstatfs64             .     .   269  267-  filesystems  always       fstatfs
mount               165    40    21    21  mounting     always
umount2             166    39    52    52  mounting     always
umount                .     .    22     .  mounting     always
fsopen              430   430   430   430  mounting     always
rt_sigreturn         15  139-   173  173-  sigreturn    always
sigreturn             .     .   119  119-  sigreturn    always       rt_sigreturn

mmap                  9   222     .     .  mmap         files
mmap2                 .     .   192   192  mmap         files        mmap
clone                56   220   120   120  processes    namespaces
io_uring_setup      425   425   425   425  -            refused
    A ring would do I/O that no filter sees. Programs fall back to calls that the filter sees.
fcntl                72    25    55    55  control      commands
fcntl64               .     .   221   221  control      commands     fcntl

setxattr            188     5   226  226-  xattrs       always
lsetxattr           189     6   227  227-  xattrs       always
removexattr         197    14   235  235-  xattrs       always
lremovexattr        198    15   236  236-  xattrs       always
getxattrat          464   464   464  464-  xattrs       always
listxattrat         465   465   465  465-  xattrs       always
setxattrat          463   463   463  463-  xattrs       always
removexattrat       466   466   466  466-  xattrs       always
file_getattr        468   468   468  468-  xattrs       always
file_setattr        469   469   469  469-  xattrs       always
name_to_handle_at   303   264   341  370-  xattrs       always
remap_file_pages    216   234   257  253-  mmap         always
close                 3   57-     6    6-  closing      mounts-closes
dup2                 33     .    63   63-  closing      mounts
dup3                292   24-   330  358-  closing      mounts
close_range         436  436-   436  436-  closing      mounts-unless-ours
fsync                74    82   118  118-  regular      mounts
fdatasync            75    83   148  148-  regular      mounts
ftruncate            77    46    93   93-  regular      mounts
ftruncate64           .     .   194  194-  regular      mounts       ftruncate
fallocate           285    47   324  352-  regular      mounts
msync                26   227   144   144  mmap         mounts
sync_file_range     277    84   314     .  regular      mounts
readahead           187   213   225  225-  regular      mounts
sync                162    81    36   36-  regular      mounts
syncfs              306   267   344  373-  regular      mounts
inotify_add_watch   254    27   292  317-  watches      mounts
fanotify_mark       301   263  339-  368-  watches      mounts
fsetxattr           190     7   228  228-  xattrs       mounts
fremovexattr        199    16   237  237-  xattrs       mounts
fchdir               81    50   133  133-  workdir      mounts-unless-ours

io_uring_enter      426   426   426   426  -            refused
    There are no rings. One that was created outside the sandbox is of no use in it.
io_uring_register   427   427   427   427  -            refused
    There are no rings. One that was created outside the sandbox is of no use in it.

munmap               11   215    91    91  -            passes
    The last part of a mapping ends its file description, which recuse notices. recuse also
    makes threads undo mappings.
madvise              28   233   219   220  -            passes
    It is about memory. recuse also makes threads fill a mapping, or keep it from children.
mlock               149   228   150   150  -            passes
    It is about memory. recuse also makes threads fill a mapping.
open_tree           428   428   428   428  -            differs
    Nothing of recuse's can be mounted elsewhere (ENOENT). recuse also makes threads open
    directories by it.
kcmp                312   272   349   378  -            passes
    It compares open files, and a device's is one. recuse also uses it to recognise
    descriptors.
pidfd_getfd         438   438   438   438  -            passes
    The copy is the same open file. recuse also uses it to fetch the ends of sleeping threads.
seccomp             317   277   354   383  -            differs
    A program's own filters work, but it cannot have a listener (EBUSY), since recuse has
    one.
getpgid             121   155   132   132  -            passes
    It is about processes. `recuse doctor` traps it, to see whether trapping works.
"""
"""In the order in which the filter compares them: frequent calls first."""
