//! Restricts the system calls of the process with seccomp. A call that isn't in the list fails with `ENOSYS`,
//! as in an older kernel, so a newer C library falls back to an older call. A call that only an attacker
//! makes kills the process; the block stays.

use std::collections::BTreeMap;
use std::io;

use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use crate::error::DaemonError;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Confines this thread and its future children.
///
/// # Errors
/// If the kernel has no seccomp, or the filter does not support the processor.
pub(super) fn confine() -> Result<(), DaemonError> {
    let failed = |error: seccompiler::Error| {
        DaemonError::system("confine system calls by seccomp", io::Error::other(error))
    };
    let wrong = |error: seccompiler::BackendError| failed(error.into());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(wrong)?;
    let rest = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let allowed =
        SeccompFilter::new(allowed().map_err(wrong)?, rest, SeccompAction::Allow, arch).map_err(wrong)?;
    let killing: Rules = KILLED_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let killing =
        SeccompFilter::new(killing, SeccompAction::Allow, SeccompAction::KillProcess, arch).map_err(wrong)?;
    // If two filters differ, the stricter result holds. The allow list comes last, since it forbids further
    // filters.
    for filter in [killing, allowed] {
        let program: BpfProgram = filter.try_into().map_err(wrong)?;
        apply_filter(&program).map_err(failed)?;
    }
    Ok(())
}

/// Calls that neither the daemon nor its C library makes.
const KILLED_CALLS: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_personality,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
];

/// Calls that are allowed with any arguments.
const ANY_ARGUMENTS: &[c_long] = &[
    // Files, sockets, and waiting for them.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    // For erasing a used key in its file.
    libc::SYS_pwrite64,
    libc::SYS_fdatasync,
    // The state file is replaced by a new one. A full audit log is renamed; what a crash left of a line is
    // cut off.
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_close,
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_unlinkat,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    // Threads and signals.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Identity and time.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// Older forms of these calls, which only some processors have.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[c_long] = &[];

fn allowed() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ANY_ARGUMENTS.iter().chain(OLD_CALLS).map(|call| (*call, Vec::new())).collect();
    let number = |n: libc::c_int| u64::from(n.unsigned_abs());
    let is = |argument, value| SeccompCondition::new(argument, Len::Dword, Op::Eq, value);
    let bits = |argument, mask, value| SeccompCondition::new(argument, Len::Qword, Op::MaskedEq(mask), value);
    let all = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions);

    // No AF_PACKET and no raw sockets; of netlink only routes, the filter and uevents.
    let family = |family| is(0, number(family));
    let kind = |kind| bits(1, 0xf, number(kind));
    let mut sockets = Vec::new();
    for inet in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX] {
        for stream_or_datagram in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets.push(all(vec![family(inet)?, kind(stream_or_datagram)?])?);
        }
    }
    for protocol in [libc::NETLINK_ROUTE, libc::NETLINK_NETFILTER, libc::NETLINK_KOBJECT_UEVENT] {
        sockets.push(all(vec![family(libc::AF_NETLINK)?, is(2, number(protocol))?])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    rules.insert(libc::SYS_socketpair, vec![all(vec![family(libc::AF_UNIX)?])?]);

    // Memory is writable or executable, never both, and writable memory never becomes executable. This is
    // enough to map the modules of the name service.
    let both = number(libc::PROT_WRITE | libc::PROT_EXEC);
    let mapped =
        [libc::PROT_NONE, libc::PROT_WRITE, libc::PROT_EXEC].map(|value| bits(2, both, number(value)));
    let mapped = mapped.into_iter().map(|rule| all(vec![rule?])).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_mmap, mapped);
    rules.insert(libc::SYS_mprotect, vec![all(vec![bits(2, number(libc::PROT_EXEC), 0)?])?]);

    // Threads, but no processes. clone3 has its flags in memory, where a filter can't see them; the C library
    // falls back to clone.
    let thread = number(libc::CLONE_THREAD | libc::CLONE_VM);
    rules.insert(libc::SYS_clone, vec![all(vec![bits(0, thread, thread)?])?]);
    // Signals to the process itself, as abort() sends them, but to no other process.
    let us = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![all(vec![is(0, us)?])?]);

    // A thread's own priority, within the limit set at the start; never a real-time one.
    for call in [libc::SYS_getpriority, libc::SYS_setpriority] {
        rules.insert(call, vec![all(vec![is(0, 0)?, is(1, 0)?])?]);
    }
    rules
        .insert(libc::SYS_sched_setscheduler, vec![all(vec![is(0, 0)?, is(1, number(libc::SCHED_BATCH))?])?]);

    rules.insert(libc::SYS_prctl, vec![all(vec![is(0, number(libc::PR_SET_NAME))?])?]);
    // Limits may be read, but not set.
    rules.insert(libc::SYS_prlimit64, vec![all(vec![bits(2, u64::MAX, 0)?])?]);
    let mut controls = Vec::new();
    for control in IOCTLS {
        controls.push(all(vec![is(1, *control)?])?);
    }
    rules.insert(libc::SYS_ioctl, controls);
    Ok(rules)
}

/// The ioctls of the TUN device, of non-blocking mode, of the number of readable bytes, and of terminals.
const IOCTLS: &[u64] =
    &[libc::TUNSETIFF, libc::TUNSETQUEUE, libc::TUNSETOFFLOAD, libc::FIONBIO, libc::FIONREAD, libc::TCGETS];
