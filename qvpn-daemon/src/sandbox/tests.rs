//! Each forbidden action is tried by a thread of a child that has entered the sandbox as the daemon does, and
//! fails there. The same action is first tried without the sandbox and works, so that the test can fail. The
//! child is another run of this test program.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{getpid, getppid};

use super::*;

/// Set in a child: the name of the test, and whether it is confined.
const CHILD: &str = "QVPN_SANDBOX_CHILD";
/// The directory with the config.
const DIRECTORY: &str = "QVPN_SANDBOX_DIRECTORY";
/// The exit code of a child whose attempt succeeded; nothing else ends the test program with it.
const DONE: i32 = 42;
/// The exit code of a child whose attempt failed.
const REFUSED: i32 = 43;

/// The result of an attempt in the sandbox.
#[derive(PartialEq)]
enum End {
    /// It succeeds.
    Done,
    /// It fails with an error.
    Error,
    /// It kills the process.
    Death,
}

/// Runs `attempt` without the sandbox, where it must succeed, and in it, where its result must be `end`. It
/// gets the config's directory.
#[track_caller]
fn tried(name: &str, end: &End, attempt: impl FnOnce(&Path) -> io::Result<()> + Send) {
    if let Some(child) = std::env::var_os(CHILD) {
        let dir = std::env::var_os(DIRECTORY).unwrap();
        return run_child(Path::new(&dir), child == "confined", attempt);
    }
    let dir = tempfile::tempdir().unwrap();
    let config = "[interface]\nprivate_key_file = \"k\"\nlisten_port = 1\naddress = [\"10.77.0.1/30\"]\n";
    fs::write(dir.path().join("qvpn0.toml"), config).unwrap();
    let run = |how: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("sandbox::tests::{name}"), "--nocapture"]);
        let output = command.env(CHILD, how).env(DIRECTORY, dir.path()).output().unwrap();
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, text) = run("free");
    assert_eq!(status.code(), Some(DONE), "it works without the sandbox: {text}");
    let (status, text) = run("confined");
    assert!(text.contains("(seccomp)"), "the sandbox was entered: {text}");
    match end {
        End::Done => assert_eq!(status.code(), Some(DONE), "{status}: {text}"),
        End::Death => assert_eq!(status.signal(), Some(nix::libc::SIGSYS), "{status}: {text}"),
        End::Error if text.contains("has no Landlock") && name.contains("file") => {
            println!("this kernel has no Landlock, and the daemon says so: {text}");
        }
        End::Error => assert_eq!(status.code(), Some(REFUSED), "{status}: {text}"),
    }
}

fn run_child(dir: &Path, confined: bool, attempt: impl FnOnce(&Path) -> io::Result<()> + Send) {
    if confined {
        let config = Config::load(&dir.join("qvpn0.toml")).unwrap();
        let mut done = enter(dir, &dir.join("state")).unwrap();
        done.extend(confine(&config, dir, &dir.join("state")).unwrap());
        eprintln!("{done:?}");
    }
    let result = thread::scope(|scope| scope.spawn(|| attempt(dir)).join().unwrap());
    if let Err(error) = &result {
        eprintln!("{error}");
    }
    std::process::exit(if result.is_ok() { DONE } else { REFUSED });
}

#[test]
fn what_the_daemon_does_itself_works() {
    tried("what_the_daemon_does_itself_works", &End::Done, |dir| {
        fs::read(dir.join("qvpn0.toml"))?;
        fs::read_dir(dir)?.count();
        std::net::UdpSocket::bind("127.0.0.1:0")?;
        std::net::TcpListener::bind("127.0.0.1:0")?;
        std::os::unix::net::UnixDatagram::unbound()?;
        // By the name service, which reads files and may load modules.
        std::net::ToSocketAddrs::to_socket_addrs("localhost:1")?;
        let thread = thread::Builder::new().name("another".to_owned()).spawn(|| {})?;
        thread.join().map_err(|_| io::ErrorKind::Other)?;
        File::open("/proc/sys/net/ipv4/conf/all/rp_filter")?;
        Ok(())
    });
}

#[test]
fn no_program_is_run() {
    tried("no_program_is_run", &End::Death, |_| {
        Err(Command::new("sh").args(["-c", &format!("exit {DONE}")]).exec())
    });
}

#[test]
fn no_process_is_made() {
    tried("no_process_is_made", &End::Error, |_| Command::new("true").status().map(drop));
}

#[test]
fn no_namespace_is_made() {
    tried("no_namespace_is_made", &End::Death, |_| Ok(unshare(CloneFlags::CLONE_FS)?));
}

#[test]
fn no_memory_of_another_process_is_read() {
    tried("no_memory_of_another_process_is_read", &End::Death, |_| {
        let (source, mut copy) = ([7u8; 8], [0u8; 8]);
        let from = nix::sys::uio::RemoteIoVec { base: source.as_ptr().addr(), len: 8 };
        nix::sys::uio::process_vm_readv(getpid(), &mut [io::IoSliceMut::new(&mut copy)], &[from])?;
        Ok(())
    });
}

#[test]
fn no_process_is_signalled() {
    tried("no_process_is_signalled", &End::Error, |_| Ok(kill(getppid(), None)?));
}

#[test]
fn no_user_is_changed() {
    tried("no_user_is_changed", &End::Death, |_| {
        let us = nix::unistd::geteuid();
        Ok(nix::unistd::setresuid(us, us, us)?)
    });
}

#[test]
fn no_core_file_is_allowed_again() {
    tried("no_core_file_is_allowed_again", &End::Error, |_| {
        let (soft, hard) = getrlimit(Resource::RLIMIT_CORE)?;
        Ok(setrlimit(Resource::RLIMIT_CORE, soft, hard)?)
    });
}

#[test]
fn no_memory_is_written_and_run() {
    tried("no_memory_is_written_and_run", &End::Error, |_| crate::sys::map_written_and_run());
}

#[test]
fn no_raw_or_strange_socket_is_opened() {
    tried("no_raw_or_strange_socket_is_opened", &End::Error, |_| {
        // This socket needs no rights, so the attempt works outside the sandbox.
        let protocol = nix::sys::socket::SockProtocol::NetlinkUserSock;
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), protocol)?;
        Ok(())
    });
}

#[test]
fn no_other_file_is_read() {
    tried("no_other_file_is_read", &End::Error, |_| File::open("/proc/self/status").map(drop));
}

#[test]
fn no_file_is_written() {
    // Nor beside the config: that directory is the operator's.
    tried("no_file_is_written", &End::Error, |dir| fs::write(dir.join("new"), "x"));
}

#[test]
fn no_file_is_changed() {
    tried("no_file_is_changed", &End::Error, |dir| {
        File::options().append(true).open(dir.join("qvpn0.toml")).map(drop)
    });
}
