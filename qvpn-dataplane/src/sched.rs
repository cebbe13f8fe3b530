//! The scheduling of lane threads: above the rest of the program, in batches.

use rustix::process::{getpriority_process, setpriority_process};

/// How many nice values lane threads are above the rest of the program.
const PRIORITY_STEP: i32 = 10;

/// Gives this thread, and those that it starts, the priority of lane threads: nice value -10. A program calls it before
/// it gives up the right to raise priorities and starts its lanes. Returns whether the system allowed it.
pub fn raise_priority() -> bool {
    setpriority_process(None, -PRIORITY_STEP).is_ok()
}

/// Raises this thread's priority where the system allows it (CAP_SYS_NICE or RLIMIT_NICE): a gateway's packets should
/// not wait for its other work. `SCHED_BATCH` then lets it wake without preempting others, so that it finds a fuller
/// queue when it runs; without the priority it would run too late.
pub(crate) fn prefer_this_thread() {
    let preferred = getpriority_process(None)
        .is_ok_and(|nice| nice <= -PRIORITY_STEP || setpriority_process(None, nice - PRIORITY_STEP).is_ok());
    if preferred {
        set_batch_policy();
    }
}

#[expect(unsafe_code, reason = "rustix and nix have no sched_setscheduler")]
fn set_batch_policy() {
    let policy = libc::sched_param { sched_priority: 0 };
    // SAFETY: `policy` is a valid `sched_param`, and 0 is this thread. A refusal changes nothing.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const policy) };
}
