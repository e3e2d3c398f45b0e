"""The other system calls of Linux up to 6.18, and why the kernel can run them.

Nothing here is loaded when a program starts; see `recuse.sandbox.table`.
"""

from __future__ import annotations

from typing import Final

ROWS: Final = """
= Memory
    It is about memory. What a program has mapped of a device is a memfd's memory, and the
    kernel treats it like any other.
brk                            12  214   45   45
mprotect                       10  226  125  125
mincore                        27  232  218  219
mlock2                        325  284  376  390
munlock                       150  229  151  151
mlockall                      151  230  152  152
munlockall                    152  231  153  153
mbind                         237  235  274  319
set_mempolicy                 238  237  276  321
get_mempolicy                 239  236  275  320
set_mempolicy_home_node       450  450  450  450
migrate_pages                 256  238  294  400
move_pages                    279  239  317  344
pkey_mprotect                 329  288  380  394
pkey_alloc                    330  289  381  395
pkey_free                     331  290  382  396
membarrier                    324  283  375  389
map_shadow_stack              453  453  453  453
mseal                         462  462  462  462
process_madvise               440  440  440  440
process_mrelease              448  448  448  448
process_vm_readv              310  270  347  376
process_vm_writev             311  271  348  377
shmget                         29  194  395  307
shmat                          30  196  397  305
shmctl                         31  195  396  308
shmdt                          67  197  398  306
memfd_create                  319  279  356  385
memfd_secret                  447  447  447    .
arch_prctl                    158    .  384    .
modify_ldt                    154    .  123    .
set_thread_area               205    .  243    .
get_thread_area               211    .  244    .
userfaultfd                   323  282  374  388
    If another program provides the pages of a buffer, recuse reads and writes it through
    /proc, which waits for them as the kernel would.

= Processes and threads
    It is about processes. The kernel copies, keeps and closes their descriptors, and recuse
    recognises a device's, whoever has it.
fork                           57    .    2    2
vfork                          58    .  190  190
exit                           60   93    1    1
exit_group                    231   94  252  248
wait4                          61  260  114  114
waitpid                         .    .    7    .
waitid                        247   95  284  280
getpid                         39  172   20   20
getppid                       110  173   64   64
gettid                        186  178  224  224
getpgrp                       111    .   65   65
setpgid                       109  154   57   57
getsid                        124  156  147  147
setsid                        112  157   66   66
getrusage                      98  165   77   77
getrlimit                      97  163   76    .
ugetrlimit                      .    .  191  191
setrlimit                     160  164   75   75
prlimit64                     302  261  340  369
set_tid_address               218   96  258  256
set_robust_list               273   99  311  338
get_robust_list               274  100  312  339
rseq                          334  293  386  398
capget                        125   90  184  184
ioprio_set                    251   30  289  314
ioprio_get                    252   31  290  315
getpriority                   140  141   96   96
setpriority                   141  140   97   97
nice                            .    .   34   34
umask                          95  166   60   60
personality                   135   92  136  136
times                         100  153   43   43
restart_syscall               219  128    0    0
uname                          63  160  122  122
olduname                        .    .  109    .
oldolduname                     .    .   59    .
pidfd_open                    434  434  434  434
clone3                        435  435  435  435 differs
    Its flags are in memory, where no filter sees them. recuse notices a new mount namespace
    at the next execve in it, and until then takes its paths for those of the old one.
prctl                         157  167  172  172 differs
    A process that lets nobody look into it (PR_SET_DUMPABLE) sees no devices, if recuse
    lacks CAP_SYS_PTRACE.
ARM_breakpoint                  .    .    . 983041
ARM_cacheflush                  .    .    . 983042
ARM_usr26                       .    .    . 983043
ARM_usr32                       .    .    . 983044
ARM_set_tls                     .    .    . 983045
ARM_get_tls                     .    .    . 983046
ptrace                        101  117   26   26 differs
    A thread that has a debugger cannot be stopped for recuse as well, so it cannot map a
    device.

= Ids
    It only reports IDs. The calls that change them are trapped.
getuid                        102  174   24   24
getuid32                        .    .  199  199
getgid                        104  176   47   47
getgid32                        .    .  200  200
geteuid                       107  175   49   49
geteuid32                       .    .  201  201
getegid                       108  177   50   50
getegid32                       .    .  202  202
getresuid                     118  148  165  165
getresuid32                     .    .  209  209
getresgid                     120  150  171  171
getresgid32                     .    .  211  211
getgroups                     115  158   80   80
getgroups32                     .    .  205  205

= Scheduling
    It is about when and where threads run.
sched_yield                    24  124  158  158
sched_setparam                142  118  154  154
sched_getparam                143  121  155  155
sched_setscheduler            144  119  156  156
sched_getscheduler            145  120  157  157
sched_get_priority_max        146  125  159  159
sched_get_priority_min        147  126  160  160
sched_rr_get_interval         148  127  161  161
sched_rr_get_interval_time64    .    .  423  423
sched_setaffinity             203  122  241  241
sched_getaffinity             204  123  242  242
sched_setattr                 314  274  351  380
sched_getattr                 315  275  352  381
getcpu                        309  168  318  345

= Signals
    The kernel delivers signals. For what they do to a trapped call, see
    [signals](signals.md).
rt_sigaction                   13  134  174  174
sigaction                       .    .   67   67
signal                          .    .   48    .
rt_sigprocmask                 14  135  175  175
sigprocmask                     .    .  126  126
sgetmask                        .    .   68    .
ssetmask                        .    .   69    .
rt_sigpending                 127  136  176  176
sigpending                      .    .   73   73
rt_sigsuspend                 130  133  179  179
sigsuspend                      .    .   72   72
pause                          34    .   29   29
rt_sigtimedwait               128  137  177  177
rt_sigtimedwait_time64          .    .  421  421
rt_sigqueueinfo               129  138  178  178
rt_tgsigqueueinfo             297  240  335  363
sigaltstack                   131  132  186  186
kill                           62  129   37   37
tkill                         200  130  238  238
tgkill                        234  131  270  268
pidfd_send_signal             424  424  424  424

= Time
    It is about clocks and timers.
time                          201    .   13    .
stime                           .    .   25    .
gettimeofday                   96  169   78   78
settimeofday                  164  170   79   79
clock_gettime                 228  113  265  263
clock_gettime64                 .    .  403  403
clock_settime                 227  112  264  262
clock_settime64                 .    .  404  404
clock_getres                  229  114  266  264
clock_getres_time64             .    .  406  406
clock_nanosleep               230  115  267  265
clock_nanosleep_time64          .    .  407  407
clock_adjtime                 305  266  343  372
clock_adjtime64                 .    .  405  405
adjtimex                      159  171  124  124
nanosleep                      35  101  162  162
alarm                          37    .   27    .
getitimer                      36  102  105  105
setitimer                      38  103  104  104
timer_create                  222  107  259  257
timer_settime                 223  110  260  258
timer_settime64                 .    .  409  409
timer_gettime                 224  108  261  259
timer_gettime64                 .    .  408  408
timer_getoverrun              225  109  262  260
timer_delete                  226  111  263  261

= Futexes and System V's and POSIX's objects
    These have names and numbers of their own, and are never devices. A futex in memory that
    a device shares works for all that map it.
futex                         202   98  240  240
futex_time64                    .    .  422  422
futex_waitv                   449  449  449  449
futex_wake                    454  454  454  454
futex_wait                    455  455  455  455
futex_requeue                 456  456  456  456
semget                         64  190  393  299
semop                          65  193    .  298
semtimedop                    220  192    .  312
semtimedop_time64               .    .  420  420
semctl                         66  191  394  300
msgget                         68  186  399  303
msgsnd                         69  189  400  301
msgrcv                         70  188  401  302
msgctl                         71  187  402  304
ipc                             .    .  117    .
mq_open                       240  180  277  274
mq_unlink                     241  181  278  275
mq_timedsend                  242  182  279  276
mq_timedsend_time64             .    .  418  418
mq_timedreceive               243  183  280  277
mq_timedreceive_time64          .    .  419  419
mq_notify                     244  184  281  278
mq_getsetattr                 245  185  282  279

= The machine and its kernel
    It is about the whole machine, or accepts only descriptors of its own kinds: a socket is
    refused as a device is.
reboot                        169  142   88   88
sethostname                   170  161   74   74
setdomainname                 171  162  121  121
sysinfo                        99  179  116  116
syslog                        103  116  103  103
init_module                   175  105  128  128
delete_module                 176  106  129  129
kexec_load                    246  104  283  347
kexec_file_load               320  294    .  401
perf_event_open               298  241  336  364
add_key                       248  217  286  309
request_key                   249  218  287  310
keyctl                        250  219  288  311
iopl                          172    .  110    .
ioperm                        173    .  101    .
vhangup                       153   58  111  111
getrandom                     318  278  355  384
pciconfig_iobase                .    .    .  271
pciconfig_read                  .    .    .  272
pciconfig_write                 .    .    .  273
uprobe                        336    .    .    .
uretprobe                     335    .    .    .
lsm_get_self_attr             459  459  459  459
lsm_set_self_attr             460  460  460  460
lsm_list_modules              461  461  461  461
ustat                         136    .   62   62
sysfs                         139    .  135  135
finit_module                  313  273  350  379
    A module must be a regular file: a socket is refused with EINVAL, as a device is.
bpf                           321  280  357  386 differs
    With CAP_BPF, a device's descriptor can be put into a map of sockets.

= Copies of descriptors
    The copy is the same open file to the kernel. So it is to recuse, which asks at each call
    which file a number means.
dup                            32   23   41   41

= New descriptors
    It creates something that is not a device, or accepts only descriptors of its own kind: a
    socket is refused as a device is.
pipe                           22    .   42   42
pipe2                         293   59  331  359
socket                         41  198  359  281
socketpair                     53  199  360  288
eventfd                       284    .  323  351
eventfd2                      290   19  328  356
signalfd                      282    .  321  349
signalfd4                     289   74  327  355
timerfd_create                283   85  322  350
timerfd_settime               286   86  325  353
timerfd_settime64               .    .  411  411
timerfd_gettime               287   87  326  354
timerfd_gettime64               .    .  410  410
epoll_create                  213    .  254  250
epoll_create1                 291   20  329  357
inotify_init                  253    .  291  316
inotify_init1                 294   26  332  360
inotify_rm_watch              255   28  293  318
fanotify_init                 300  262  338  367
fsconfig                      431  431  431  431
fsmount                       432  432  432  432

= Asynchronous I/O
    Contexts and completions are the kernel's, for devices too. Submitting to them is trapped.
io_setup                      206    0  245  243
io_destroy                    207    1  246  244
io_cancel                     210    3  249  247
io_getevents                  208    4  247  245
io_pgetevents                 333  292  385  399
io_pgetevents_time64            .    .  416  416

= Files by descriptor
    A socket has nothing to write out, read ahead or cut off, and says so as a device does.
arm_sync_file_range             .    .    .  341
fadvise64                     221  223  250    .
fadvise64_64                    .    .  272    .
arm_fadvise64_64                .    .    .  270
cachestat                     451  451  451  451 differs
    Linux answers only programs that may write (EPERM); here it says to all that no pages are
    cached.
vmsplice                      278   75  316  343 differs
    A device is not a pipe (EBADF), and neither is a socket. But where ptrace is refused, a
    device's descriptor is a pipe's: see [containers](containers.md).
quotactl_fd                   443  443  443  443
    There are no quotas where devices are, and none where sockets are.

= Paths of devices
    It takes a path.
open_by_handle_at             304  265  342  371
    No handle leads to a device, since programs cannot get one for it.
move_mount                    429  429  429  429 differs
    Nothing of recuse's can be mounted elsewhere, and nothing can be mounted on it (ENOENT).
mount_setattr                 442  442  442  442
    Nothing is mounted at a device's path. The error is ENOENT, and not EINVAL.
open_tree_attr                467  467  467  467 differs
    Nothing of recuse's can be mounted elsewhere, and nothing can be mounted on it (ENOENT).
fspick                        433  433  433  433
    Nothing is mounted at a device's path. The error is ENOENT, and not EINVAL.
statmount                     457  457  457  457
    It reports mounts, which are all the kernel's.
listmount                     458  458  458  458
    It reports mounts, which are all the kernel's.
acct                          163   89   51   51 differs
    A device's path is refused with ENOENT, and not with the error for the wrong kind of file.
swapon                        167  224   87   87 differs
    A device's path is refused with ENOENT, and not with the error for the wrong kind of file.
swapoff                       168  225  115  115 differs
    A device's path is refused with ENOENT, and not with the error for the wrong kind of file.
quotactl                      179   60  131  131 differs
    A device's path is refused with ENOENT, and not with the error for the wrong kind of file.
uselib                        134    .   86   86 differs
    A device's path is refused with ENOENT, and not with the error for the wrong kind of file.
readdir                         .    .   89    . differs
    It lists no devices. Only libc5 made this call.
oldstat                         .    .   18    . differs
    It finds no devices, or shows a socket. Only libc4 made this call.
oldlstat                        .    .   84    . differs
    It finds no devices, or shows a socket. Only libc4 made this call.
oldfstat                        .    .   28    . differs
    It finds no devices, or shows a socket. Only libc4 made this call.

= Landlock
    Its rules are for files of the kernel's.
landlock_create_ruleset       444  444  444  444
landlock_add_rule             445  445  445  445 differs
    A device's descriptor does not stand for a path (EBADFD).

= What no kernel does any more
    The kernel says ENOSYS. Some never existed; Linux 6.8 removed the last of the others.
afs_syscall                   183    .  137    .
bdflush                         .    .  134  134
break                           .    .   17    .
create_module                 174    .  127    .
epoll_ctl_old                 214    .    .    .
epoll_wait_old                215    .    .    .
ftime                           .    .   35    .
get_kernel_syms               177    .  130    .
getpmsg                       181    .  188    .
gtty                            .    .   32    .
idle                            .    .  112    .
lock                            .    .   53    .
lookup_dcookie                212   18  253  249
mpx                             .    .   56    .
nfsservctl                    180   42  169  169
prof                            .    .   44    .
profil                          .    .   98    .
putpmsg                       182    .  189    .
query_module                  178    .  167    .
security                      185    .    .    .
stty                            .    .   31    .
tuxcall                       184    .    .    .
ulimit                          .    .   58    .
vm86                            .    .  166    .
vm86old                         .    .  113    .
vserver                       236    .  273  313
_sysctl                       156    .  149  149
"""

_CANNOT_BE_REPEATED: Final = (
    "A call that a signal has ended cannot be made again: its first argument is gone."
)
_FLUSHES_ONCE: Final = (
    "A descriptor would stay open then. So a filesystem's file is flushed when its last descriptor "
    "is closed, and the program does not see the error."
)
ELSEWHERE: Final = {
    ("rt_sigreturn", "arm64"): ("passes", _CANNOT_BE_REPEATED),
    ("close", "arm64"): ("differs", f"{_CANNOT_BE_REPEATED} {_FLUSHES_ONCE}"),
    ("close_range", "arm64"): ("differs", "As with close."),
    ("dup3", "arm64"): ("differs", "As with close."),
    ("getdents", "i386"): (
        "differs",
        "It lists no devices. C libraries call getdents64 instead.",
    ),
    ("fanotify_mark", "i386"): (
        "differs",
        "There is nothing to watch at the path of a filesystem's file (ENOENT).",
    ),
}
"""Why a call that is trapped on other machines passes (it has a ``-`` behind its number)."""

ON_ARM: Final = (
    "32-bit programs see no devices on arm64. Two kinds of calls are trapped: those that could "
    "reach a device whose descriptor they inherit, and those that change what recuse remembers of "
    "a process."
)
"""Why a call that is trapped on other machines passes there."""
