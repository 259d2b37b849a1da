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
//! Each stands by itself: a kernel without Landlock (before 5.13, or built without) still
//! has the list of system calls, which opens no file. What a kernel does not have is told
//! to the caller. Not becoming another user, as root, is an error.
//!
//! Called at the very start of a process that has one thread: `varve_fetch::worker`.
//! Sources: `landlock(7)`, `seccomp(2)`, `credentials(7)`.

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
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

/// Gives up everything but the open descriptors and so many bytes of address space. Gives
/// the names of what this kernel does not have for it.
///
/// # Errors
/// When root cannot become another user, or the kernel refuses what it knows.
pub fn enter(memory: u64) -> io::Result<Vec<&'static str>> {
    let mut lacks = Vec::new();
    limit(memory)?;
    if rustix::process::geteuid().is_root() {
        let apart = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        // SAFETY: none of these flags unshares the file descriptor table.
        if unsafe { rustix::thread::unshare_unsafe(apart) }.is_err() {
            lacks.push("namespaces");
        }
        become_nobody()?;
    }
    rustix::thread::set_no_new_privs(true)?;
    if !landlock().map_err(io::Error::other)? {
        lacks.push("Landlock");
    }
    match seccomp() {
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

fn limit(memory: u64) -> io::Result<()> {
    for (resource, most) in
        [(Resource::Core, 0), (Resource::Fsize, 0), (Resource::Nofile, 16), (Resource::As, memory)]
    {
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
fn landlock() -> Result<bool, landlock::RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn seccomp() -> Result<(), seccompiler::Error> {
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        COMPUTE.iter().map(|&call| (call, Vec::new())).collect();
    let when = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let thread = libc::CLONE_THREAD as u64;
    // A thread, never a process. clone3(2) hides its flags: who is refused it takes clone(2).
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    let named = libc::PR_SET_NAME as u64;
    rules.insert(libc::SYS_prctl, vec![when(0, SeccompCmpOp::Eq, named)?]);
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
    libc::SYS_tgkill,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
