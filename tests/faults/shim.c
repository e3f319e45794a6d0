/* Faults and a journal between a process and its files: what the disk does is decided here.

   Preloaded into a child. Acts on paths below LEOMA_FAULT_ROOT only; everything else goes straight
   to the kernel. Each operation is counted in a shared page (LEOMA_FAULT_CONTROL), which also says
   which one is to fail, and how. Where there is a journal, every operation is told there, in the
   order in which it happened, with the bytes: `power.py` makes disks from it.

   All calls go on as raw system calls, so nothing here can recurse, and one mutex is held over the
   decision, the call and its line in the journal, so that the journal's order is the true one. Of
   several processes that write one journal a lock on it keeps the order. The clock is moved by as
   many seconds as the page says; what the kernel notes itself, as in files' times, is not. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The order is that of `shim.KINDS`. */
enum kind { WRITE, TRUNCATE, SYNC, CREATE, RENAME, UNLINK, MKDIR, SYMLINK, LINK, RMDIR, OPEN_READ, OPEN_WRITE, MARK };
enum mode { NOT_APPLIED, APPLIED, TORN, KILLED, NO_FAULT };

/* The layout is that of `shim.Control`. */
struct control {
    uint64_t seen[16];     /* operations by kind */
    uint64_t matched;      /* operations of the plan's kinds since it was made */
    uint64_t injected;     /* calls that failed here */
    uint64_t plan_nth;     /* which of them fails, from 1; 0: none */
    uint32_t plan_kinds;   /* bits */
    uint32_t plan_mode;
    int32_t plan_errno;
    uint32_t lasting_kinds; /* bits; all of these fail until the bits are taken away */
    int32_t lasting_errno;
    uint32_t syncs_lie;     /* a sync says yes and does nothing */
    uint32_t hit_kind;
    uint32_t padding;
    char hit_path[512];
    int64_t clock_seconds;  /* by how much the clock is ahead of the machine's */
};

struct record {
    uint32_t kind;
    uint32_t is_applied;
    uint64_t inode;
    uint64_t offset;
    uint32_t path_bytes, other_bytes;
    uint64_t data_bytes;
};

static char root[PATH_MAX];
static size_t root_bytes;
static struct control *control;
static int journal = -1;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static void hold_here(void) { pthread_mutex_lock(&order); }
static void let_go_here(void) { pthread_mutex_unlock(&order); }

/* Nothing that is done in between waits for another process. */
static void hold(void)
{
    hold_here();
    if (journal >= 0)
        syscall(SYS_flock, journal, LOCK_EX);
}

static void let_go(void)
{
    int before = errno;
    if (journal >= 0)
        syscall(SYS_flock, journal, LOCK_UN);
    errno = before;
    let_go_here();
}

static long open_raw(int at, const char *path, int flags, mode_t mode)
{
    return syscall(SYS_openat, at, path, flags, mode);
}

__attribute__((constructor)) static void begin(void)
{
    const char *below = getenv("LEOMA_FAULT_ROOT"), *page = getenv("LEOMA_FAULT_CONTROL");
    if (!below || !page)
        return;
    int fd = (int)open_raw(AT_FDCWD, page, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return;
    control = mapped;
    /* A child that is forked while another thread holds the mutex would wait for ever. */
    pthread_atfork(hold_here, let_go_here, let_go_here);
    snprintf(root, sizeof root, "%s", below);
    root_bytes = strlen(root);
}

/* ---- for the child itself, through ctypes ---- */

static void tell(int kind, int is_applied, uint64_t inode, uint64_t offset, const char *path,
                 const char *other, const struct iovec *data, int pieces, uint64_t data_bytes)
{
    if (journal < 0)
        return;
    struct record record = {.kind = (uint32_t)kind, .is_applied = (uint32_t)is_applied,
                            .inode = inode, .offset = offset,
                            .path_bytes = (uint32_t)strlen(path),
                            .other_bytes = (uint32_t)strlen(other), .data_bytes = data_bytes};
    syscall(SYS_write, journal, &record, sizeof record);
    syscall(SYS_write, journal, path, record.path_bytes);
    syscall(SYS_write, journal, other, record.other_bytes);
    for (int i = 0; i < pieces && data_bytes; i++) {
        size_t now = data[i].iov_len < data_bytes ? data[i].iov_len : data_bytes;
        syscall(SYS_write, journal, data[i].iov_base, now);
        data_bytes -= now;
    }
}

/* Begin a journal or go on with one, or end it with NULL. */
void leoma_fault_journal(const char *path)
{
    hold_here();
    if (journal >= 0)
        close(journal);
    journal = path ? (int)open_raw(AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    let_go_here();
}

/* Note in the journal what happened outside of the disk: an acknowledgement. */
void leoma_fault_mark(const char *text)
{
    hold();
    tell(MARK, 1, 0, 0, text, "", NULL, 0, 0);
    let_go();
}

/* ---- which paths, which faults ---- */

static int is_below(const char *path)
{
    return !strncmp(path, root, root_bytes) && (path[root_bytes] == '/' || !path[root_bytes]);
}

static int fd_path(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    char *deleted = strstr(path, " (deleted)");
    if (deleted)
        *deleted = 0;
    return 1;
}

/* Whether the file of a descriptor is ours; errno stays as it was. */
static int is_ours(int fd, char *path)
{
    int before = errno;
    int ours = control && fd_path(fd, path) && is_below(path);
    errno = before;
    return ours;
}

static int is_ours_at(int at, const char *name, char *path)
{
    if (!control || !name)
        return 0;
    int before = errno;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        char base[PATH_MAX] = "";
        if (at == AT_FDCWD ? !getcwd(base, sizeof base) : !fd_path(at, base))
            base[0] = 0;
        if ((size_t)snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX)
            path[0] = 0;
    }
    errno = before;
    return is_below(path);
}

static uint64_t inode_of(int fd)
{
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

static uint64_t inode_at(const char *path)
{
    struct stat found;
    return fstatat(AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW) ? 0 : found.st_ino;
}

static int decide(int kind, const char *path, int *error)
{
    uint32_t bit = 1u << kind;
    int mode = NO_FAULT;
    __atomic_add_fetch(&control->seen[kind], 1, __ATOMIC_SEQ_CST);
    if (control->lasting_kinds & bit) {
        mode = NOT_APPLIED;
        *error = control->lasting_errno;
    } else if (control->plan_nth && (control->plan_kinds & bit)
               && __atomic_add_fetch(&control->matched, 1, __ATOMIC_SEQ_CST) == control->plan_nth) {
        mode = (int)control->plan_mode;
        *error = control->plan_errno;
    }
    if (mode != NO_FAULT) {
        __atomic_add_fetch(&control->injected, 1, __ATOMIC_SEQ_CST);
        control->hit_kind = (uint32_t)kind;
        snprintf(control->hit_path, sizeof control->hit_path, "%s", path);
    }
    if (mode == KILLED)
        kill(getpid(), SIGKILL);
    return mode;
}

/* Return what the call returned, or the fault in its place. */
static long outcome(long result, int call_errno, int mode, int error)
{
    errno = mode == NO_FAULT ? call_errno : error;
    return mode == NO_FAULT ? result : -1;
}

/* ---- writing ---- */

static ssize_t write_at(int fd, const struct iovec *data, int pieces, off_t offset, int has_offset,
                        const char *path)
{
    int error = 0;
    uint64_t wanted = 0;
    for (int i = 0; i < pieces; i++)
        wanted += data[i].iov_len;
    hold();
    int mode = decide(WRITE, path, &error);
    off_t at = offset;
    if (!has_offset) {
        int flags = (int)syscall(SYS_fcntl, fd, F_GETFL);
        at = lseek(fd, 0, flags & O_APPEND ? SEEK_END : SEEK_CUR);
    }
    long written = 0;
    int call_errno = 0;
    if (mode == TORN && wanted) {
        /* A half of it, in one piece: a power of two of sectors is not promised by anybody. */
        size_t half = data[0].iov_len / 2;
        written = has_offset ? syscall(SYS_pwrite64, fd, data[0].iov_base, half, offset)
                             : syscall(SYS_write, fd, data[0].iov_base, half);
        call_errno = errno;
    } else if (mode != NOT_APPLIED) {
        /* The kernel takes the offset of the vector calls in two halves; the first one suffices. */
        written = has_offset ? syscall(SYS_pwritev, fd, data, pieces, offset, 0L)
                             : syscall(SYS_writev, fd, data, pieces);
        call_errno = errno;
    }
    uint64_t told = written > 0 ? (uint64_t)written : 0;
    tell(WRITE, mode != NOT_APPLIED && written >= 0, inode_of(fd), (uint64_t)at, path, "", data,
         pieces, told);
    let_go();
    return outcome(written, call_errno, mode, error);
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return syscall(SYS_write, fd, bytes, count);
    struct iovec one = {(void *)bytes, count};
    return write_at(fd, &one, 1, 0, 0, path);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return syscall(SYS_pwrite64, fd, bytes, count, offset);
    struct iovec one = {(void *)bytes, count};
    return write_at(fd, &one, 1, offset, 1, path);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    return pwrite(fd, bytes, count, offset);
}

ssize_t writev(int fd, const struct iovec *data, int pieces)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return syscall(SYS_writev, fd, data, pieces);
    return write_at(fd, data, pieces, 0, 0, path);
}

ssize_t pwritev(int fd, const struct iovec *data, int pieces, off_t offset)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return syscall(SYS_pwritev, fd, data, pieces, offset, 0L);
    return write_at(fd, data, pieces, offset, 1, path);
}

ssize_t pwritev64(int fd, const struct iovec *data, int pieces, off64_t offset)
{
    return pwritev(fd, data, pieces, offset);
}

/* Of the ways around the calls above none is taken today; who takes one has to be seen here. */
static int refuse(const char *call, const char *path)
{
    fprintf(stderr, "leoma fault shim: %s on %s is not simulated\n", call, path);
    abort();
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return (int)syscall(SYS_fallocate, fd, mode, offset, length);
    return refuse("fallocate", path);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return fallocate(fd, mode, offset, length);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags)
{
    char path[PATH_MAX];
    if (!is_ours(out, path))
        return syscall(SYS_copy_file_range, in, from, out, to, count, flags);
    /* Callers go on by read and write where the kernel cannot do it. */
    errno = EXDEV;
    return -1;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
    char path[PATH_MAX];
    if (!is_ours(out, path))
        return syscall(SYS_sendfile, out, in, offset, count);
    errno = EINVAL;
    return -1;
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count)
{
    return sendfile(out, in, offset, count);
}

static int truncate_fd(int fd, off_t length, const char *path)
{
    int error = 0, call_errno = 0;
    long result = 0;
    hold();
    int mode = decide(TRUNCATE, path, &error);
    if (mode == NO_FAULT || mode == APPLIED) {
        result = syscall(SYS_ftruncate, fd, length);
        call_errno = errno;
        tell(TRUNCATE, !result, inode_of(fd), (uint64_t)length, path, "", NULL, 0, 0);
    }
    let_go();
    return (int)outcome(result, call_errno, mode, error);
}

int ftruncate(int fd, off_t length)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return (int)syscall(SYS_ftruncate, fd, length);
    return truncate_fd(fd, length, path);
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

/* The disk itself is not asked: these tests cut no real power, and real syncs are slow. */
static int sync_fd(int fd, const char *path)
{
    int error = 0;
    hold();
    int mode = decide(SYNC, path, &error);
    if (!control->syncs_lie)
        tell(SYNC, mode == NO_FAULT || mode == APPLIED, inode_of(fd), 0, path, "", NULL, 0, 0);
    let_go();
    return (int)outcome(0, errno, mode, error);
}

int fsync(int fd)
{
    char path[PATH_MAX];
    return is_ours(fd, path) ? sync_fd(fd, path) : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    char path[PATH_MAX];
    return is_ours(fd, path) ? sync_fd(fd, path) : (int)syscall(SYS_fdatasync, fd);
}

/* ---- names ---- */

static int open_at(int at, const char *name, int flags, mode_t mode_bits)
{
    char path[PATH_MAX];
    if (!is_ours_at(at, name, path))
        return (int)open_raw(at, name, flags, mode_bits);
    int error = 0, call_errno = errno;
    hold();
    struct stat found;
    int is_there = !fstatat(at, name, &found, 0);
    int empties = is_there && (flags & O_TRUNC) && found.st_size > 0;
    int kind = (flags & O_CREAT) && !is_there ? CREATE
        : empties ? TRUNCATE
        : (flags & O_ACCMODE) == O_RDONLY ? OPEN_READ : OPEN_WRITE;
    int mode = decide(kind, path, &error);
    long result = 0;
    if (mode == NO_FAULT || mode == APPLIED) {
        result = open_raw(at, name, flags, mode_bits);
        call_errno = result < 0 ? errno : call_errno;
        if (result >= 0)
            tell(kind, 1, inode_of((int)result), 0, path, "", NULL, 0, 0);
        if (mode == APPLIED && result >= 0)
            close((int)result);
    }
    let_go();
    return (int)outcome(result, call_errno, mode, error);
}

#define MODE_BITS(flags, mode)              \
    mode_t mode = 0;                        \
    if ((flags) & (O_CREAT | O_TMPFILE)) {  \
        va_list more;                       \
        va_start(more, flags);              \
        mode = va_arg(more, mode_t);        \
        va_end(more);                       \
    }

int open(const char *name, int flags, ...)
{
    MODE_BITS(flags, mode)
    return open_at(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...)
{
    MODE_BITS(flags, mode)
    return open_at(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}

int openat(int at, const char *name, int flags, ...)
{
    MODE_BITS(flags, mode)
    return open_at(at, name, flags, mode);
}

int openat64(int at, const char *name, int flags, ...)
{
    MODE_BITS(flags, mode)
    return open_at(at, name, flags | O_LARGEFILE, mode);
}

int creat(const char *name, mode_t mode)
{
    return open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *name, mode_t mode) { return creat(name, mode); }

/* What the compiler calls in their place where it checks more. */
int __open_2(const char *name, int flags) { return open_at(AT_FDCWD, name, flags, 0); }
int __open64_2(const char *name, int flags) { return open_at(AT_FDCWD, name, flags, 0); }
int __openat_2(int at, const char *name, int flags) { return open_at(at, name, flags, 0); }
int __openat64_2(int at, const char *name, int flags) { return open_at(at, name, flags, 0); }

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    char path[PATH_MAX], other[PATH_MAX];
    int from_ours = is_ours_at(from_at, from, path), to_ours = is_ours_at(to_at, to, other);
    if (!from_ours && !to_ours)
        return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    int error = 0, call_errno = 0;
    long result = 0;
    hold();
    int mode = decide(RENAME, other, &error);
    if (mode == NO_FAULT || mode == APPLIED) {
        result = syscall(SYS_renameat2, from_at, from, to_at, to, flags);
        call_errno = errno;
        tell(RENAME, !result, inode_at(other), 0, path, other, NULL, 0, 0);
    }
    let_go();
    return (int)outcome(result, call_errno, mode, error);
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    return renameat2(from_at, from, to_at, to, 0);
}

int rename(const char *from, const char *to)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlinkat(int at, const char *name, int flags)
{
    char path[PATH_MAX];
    if (!is_ours_at(at, name, path))
        return (int)syscall(SYS_unlinkat, at, name, flags);
    int error = 0, call_errno = 0, kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    long result = 0;
    hold();
    uint64_t inode = inode_at(path);
    /* What is not there cannot be removed, with or without a fault: that is no operation. */
    int mode = inode ? decide(kind, path, &error) : NO_FAULT;
    if (mode == NO_FAULT || mode == APPLIED) {
        result = syscall(SYS_unlinkat, at, name, flags);
        call_errno = errno;
        if (inode)
            tell(kind, !result, inode, 0, path, "", NULL, 0, 0);
    }
    let_go();
    return (int)outcome(result, call_errno, mode, error);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int at, const char *name, mode_t mode_bits)
{
    char path[PATH_MAX];
    if (!is_ours_at(at, name, path) || inode_at(path))
        return (int)syscall(SYS_mkdirat, at, name, mode_bits);
    int error = 0, call_errno = 0;
    long result = 0;
    hold();
    int mode = decide(MKDIR, path, &error);
    if (mode == NO_FAULT || mode == APPLIED) {
        result = syscall(SYS_mkdirat, at, name, mode_bits);
        call_errno = errno;
        tell(MKDIR, !result, inode_at(path), 0, path, "", NULL, 0, 0);
    }
    let_go();
    return (int)outcome(result, call_errno, mode, error);
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int symlinkat(const char *target, int at, const char *name)
{
    char path[PATH_MAX];
    if (!is_ours_at(at, name, path))
        return (int)syscall(SYS_symlinkat, target, at, name);
    int error = 0, call_errno = 0;
    long result = 0;
    hold();
    int mode = decide(SYMLINK, path, &error);
    if (mode == NO_FAULT || mode == APPLIED) {
        result = syscall(SYS_symlinkat, target, at, name);
        call_errno = errno;
        tell(SYMLINK, !result, inode_at(path), 0, path, target, NULL, 0, 0);
    }
    let_go();
    return (int)outcome(result, call_errno, mode, error);
}

int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    char path[PATH_MAX];
    if (!is_ours_at(to_at, to, path))
        return (int)syscall(SYS_linkat, from_at, from, to_at, to, flags);
    return refuse("link", path);
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* ---- the clock ---- */

static int is_of_the_day(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (!result && control && is_of_the_day(clock))
        now->tv_sec += __atomic_load_n(&control->clock_seconds, __ATOMIC_SEQ_CST);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (into)
        *into = precise.tv_sec;
    return precise.tv_sec;
}
