//! The place of background work among all others: behind them.

/// How much nicer than others, of 19 at most.
const NICE: i32 = 10;
// include/uapi/linux/ioprio.h
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASS_IDLE: u32 = 3;
const IOPRIO_WHO_PROCESS: u32 = 1;

/// Puts this thread, and all that it starts from now on, behind others: its processor time
/// by ten steps of nice, its disk by the class "idle". What cannot be lowered stays.
pub fn lower() {
    // Nicer than that already, by a unit or a user: it stays so.
    let nicer = rustix::process::getpriority_process(None).is_ok_and(|now| now >= NICE);
    if !nicer {
        let _ = rustix::process::setpriority_process(None, NICE);
    }
    let idle = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: ioprio_set(which, who, value) takes three numbers and touches no memory; 0
    // is the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, idle) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_starts_is_behind_others_too() {
        // In a thread of its own, so that other tests are as they were.
        let seen = std::thread::spawn(|| {
            lower();
            std::thread::spawn(|| {
                let nice = rustix::process::getpriority_process(None).unwrap();
                // SAFETY: ioprio_get(which, who) takes two numbers and touches no memory.
                let class = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
                (nice, class >> IOPRIO_CLASS_SHIFT)
            })
            .join()
            .unwrap()
        });
        let (nice, class) = seen.join().unwrap();
        assert!(nice >= NICE, "{nice}");
        assert_eq!(class, i64::from(IOPRIO_CLASS_IDLE));
    }
}
