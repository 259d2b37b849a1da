//! A process gives up what it does not need, for good: before it looks at bytes that a
//! stranger wrote.
//!
//! ```text
//! limits      no core file, no file written, few descriptors, so much memory
//! namespaces  (root) no network, no IPC, no host name
//! user        (root) nobody, in no group; with it go all capabilities
//! Landlock    no file, no TCP; no signal and no socket to the outside
//! seccomp     the system calls of the list, and no others (they fail with ENOSYS)
//! ```
//!
//! Who asks servers ([`Keeps::Web`]) keeps the network to connect to, and to read what
//! names are looked up by.
//!
//! Each stands by itself: a kernel without Landlock (before 5.13, or built without) still
//! has the list of system calls, which opens no file, and for the web opens none but to
//! read what everybody may. What a kernel does not have is told to the caller. Not becoming another user, as root, is an error.
//!
//! Called at the very start of a process that has one thread: `varve_fetch::worker`.
//! Sources: `landlock(7)`, `seccomp(2)`, `credentials(7)`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::UnshareFlags;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The user and group that nobody is, on every Linux system.
const NOBODY: u32 = 65534;
/// The most that Landlock has had when this was written (Linux 6.12); older kernels do what
/// they can.
const KNOWN: ABI = ABI::V6;

/// Closes all descriptors but the three standard ones, whoever forgot to.
pub fn close_inherited() {
    crate::confine::close_all();
}

/// What a process goes on doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeps {
    /// It computes, with the descriptors that it has.
    Nothing,
    /// It connects to servers, by names that it looks up, and takes sockets of its caller.
    Web,
}

/// Gives up everything else, and all but so many bytes of address space. Gives the names of
/// what this kernel does not have for it.
///
/// # Errors
/// When root cannot become another user, or the kernel refuses what it knows.
pub fn enter(keeps: Keeps, memory: u64) -> io::Result<Vec<&'static str>> {
    let mut lacks = Vec::new();
    limit(keeps, memory)?;
    if rustix::process::geteuid().is_root() {
        let mut apart = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        if keeps == Keeps::Nothing {
            apart |= UnshareFlags::NEWNET;
        }
        // SAFETY: none of these flags unshares the file descriptor table.
        if unsafe { rustix::thread::unshare_unsafe(apart) }.is_err() {
            lacks.push("namespaces");
        }
        become_nobody()?;
    }
    rustix::thread::set_no_new_privs(true)?;
    if !landlock(keeps).map_err(io::Error::other)? {
        lacks.push("Landlock");
    }
    match seccomp(keeps) {
        Ok(()) => {}
        // A processor of which the library knows no numbers of calls.
        Err(seccompiler::Error::Backend(seccompiler::BackendError::InvalidTargetArch(_))) => {
            lacks.push("seccomp");
        }
        Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) =>
        {
            lacks.push("seccomp");
        }
        Err(error) => return Err(io::Error::other(error)),
    }
    Ok(lacks)
}

fn limit(keeps: Keeps, memory: u64) -> io::Result<()> {
    let files = if keeps == Keeps::Web { 256 } else { 16 };
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nofile, files),
        (Resource::As, memory),
    ] {
        // What is lower already stays.
        let before = rustix::process::getrlimit(resource);
        let most = before.maximum.map_or(most, |maximum| maximum.min(most));
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::setrlimit(resource, limit)?;
    }
    Ok(())
}

fn become_nobody() -> io::Result<()> {
    let (user, group) =
        (rustix::process::Uid::from_raw(NOBODY), rustix::process::Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    // All capabilities go with the last identity of root: capabilities(7).
    rustix::thread::set_thread_res_uid(user, user, user)?;
    // And so does the wish to end with the parent: prctl(2).
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Whether the kernel has it.
fn landlock(keeps: Keeps) -> Result<bool, landlock::RulesetError> {
    let mut ports = AccessNet::from_all(KNOWN);
    if keeps == Keeps::Web {
        ports.remove(AccessNet::ConnectTcp);
    }
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(ports)?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    if keeps == Keeps::Web {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        rules = rules.add_rules(path_beneath_rules(names(), read))?;
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// What a name is looked up by: `resolv.conf(5)`, `hosts(5)`, and the parts of a C library
/// that are files. Where one is a link, the directory that it leads to.
fn names() -> Vec<PathBuf> {
    let mut list = vec![PathBuf::from("/etc"), PathBuf::from("/usr")];
    let real = Path::new("/etc/resolv.conf").canonicalize();
    // What it leads to may be written later.
    let leads = || Some(Path::new("/etc").join(std::fs::read_link("/etc/resolv.conf").ok()?));
    let real = real.ok().or_else(leads);
    list.extend(real.and_then(|path| path.parent()?.canonicalize().ok()));
    list
}

fn seccomp(keeps: Keeps) -> Result<(), seccompiler::Error> {
    let free = |list: &[i64]| -> Vec<_> { list.iter().map(|&call| (call, Vec::new())).collect() };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = free(COMPUTE).into_iter().collect();
    let when = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let thread = libc::CLONE_THREAD as u64;
    // A thread, never a process. clone3(2) hides its flags: who is refused it takes clone(2).
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    let named = libc::PR_SET_NAME as u64;
    rules.insert(libc::SYS_prctl, vec![when(0, SeccompCmpOp::Eq, named)?]);
    // A signal to itself, as abort(3) sends it.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, own)?]);
    if keeps == Keeps::Web {
        rules.extend(free(WEB));
        // Nothing that has signals sent to somebody.
        let plain =
            [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
        let plain: Result<Vec<_>, _> =
            plain.into_iter().map(|what| when(1, SeccompCmpOp::Eq, what as u64)).collect();
        rules.insert(libc::SYS_fcntl, plain?);
        let family = |family| when(0, SeccompCmpOp::Eq, family as u64);
        let families = vec![family(libc::AF_INET)?, family(libc::AF_INET6)?];
        rules.insert(libc::SYS_socket, families);
        // No more than that a descriptor does not wait.
        #[allow(clippy::unnecessary_cast, reason = "it has another type in another C library")]
        let waits = when(1, SeccompCmpOp::Eq, libc::FIONBIO as u64)?;
        rules.insert(libc::SYS_ioctl, vec![waits]);
        let changes = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
        let how = SeccompCmpOp::MaskedEq(changes as u64);
        let read = libc::O_RDONLY as u64;
        rules.insert(libc::SYS_openat, vec![when(2, how.clone(), read)?]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, vec![when(1, how, read)?]);
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

/// What computing takes: memory, threads, and the descriptors that are open.
const COMPUTE: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What asking servers takes beside it: connections, waiting for them, and reading what
/// names are looked up by.
const WEB: &[i64] = &[
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_uname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];
