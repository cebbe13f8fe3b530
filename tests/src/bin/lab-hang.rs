//! Hangs a daemon's control task while its lanes run: it stops each thread of the process except the lanes',
//! one by one, as a debugger does. SIGSTOP would stop all threads.
//!
//! `lab-hang PID`; prints `stopped N threads`, and resumes them after a line on standard input.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-hang: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let id = std::env::args().nth(1).ok_or("usage: lab-hang PID")?;
    let mut stopped = Vec::new();
    for entry in fs::read_dir(format!("/proc/{id}/task"))? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("comm"))?;
        if name.starts_with("lane") {
            continue;
        }
        let thread = Pid::from_raw(entry.file_name().to_string_lossy().parse()?);
        ptrace::seize(thread, ptrace::Options::empty())?;
        ptrace::interrupt(thread)?;
        waitpid(thread, Some(WaitPidFlag::__WALL))?;
        stopped.push(thread);
    }
    println!("stopped {} threads", stopped.len());
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    for thread in stopped {
        ptrace::detach(thread, None)?;
    }
    println!("let go");
    Ok(())
}
