//! Scheduling of lane threads: higher priority than the rest of the program, in batches.

use rustix::process::{getpriority_process, setpriority_process};

/// The difference between the nice values of lane threads and of the rest of the program.
const PRIORITY_STEP: i32 = 10;

/// Gives this thread, and the threads that it starts, the priority of lane threads: nice value -10. Returns
/// whether the system allowed it. A program calls this before it drops the right to raise priorities and
/// before it starts lanes.
pub fn raise_priority() -> bool {
    setpriority_process(None, -PRIORITY_STEP).is_ok()
}

/// Raises this thread's priority if the system allows it (CAP_SYS_NICE or RLIMIT_NICE), so that packets do
/// not wait for the gateway's other work. `SCHED_BATCH` then lets the thread wake without preempting others,
/// so that it finds a fuller queue when it runs; without the higher priority it would run too late.
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
