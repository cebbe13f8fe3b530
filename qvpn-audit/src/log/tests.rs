use std::fs;
use std::path::PathBuf;

use super::*;
use crate::verify::verify;

struct Dir {
    dir: tempfile::TempDir,
    key: VerificationKey,
}

impl Dir {
    /// A log with `lines` lines.
    fn with(lines: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = AuditPaths::within(dir.path(), dir.path(), "qvpn0");
        let (mut log, key) = AuditLog::set_up(paths).unwrap();
        (0..lines).for_each(|n| log.append(&record(n)).unwrap());
        Self { dir, key }
    }

    fn paths(&self) -> AuditPaths {
        AuditPaths::within(self.dir.path(), self.dir.path(), "qvpn0")
    }

    fn open(&self) -> (AuditLog, Tail) {
        AuditLog::open(self.paths()).unwrap()
    }

    fn parts(&self) -> Vec<PathBuf> {
        self.paths().parts().unwrap()
    }

    /// The number of lines, all of which must be as they were written.
    #[track_caller]
    fn verified(&self) -> u64 {
        let next = AuditLog::next_seq_of(&self.paths()).unwrap();
        verify(&self.parts(), Some(&self.key), 0, next).unwrap().lines
    }
}

fn record(n: u64) -> String {
    format!("{{\"time\":\"2026-12-01T00:00:00.000Z\",\"event\":\"test\",\"n\":{n}}}")
}

#[test]
fn a_restart_goes_on_where_the_log_ended() {
    let dir = Dir::with(3);
    let (mut log, tail) = dir.open();
    assert_eq!((tail, log.next_seq()), (Tail::Expected, 3));
    log.append(&record(3)).unwrap();
    assert!(matches!(AuditLog::open(dir.paths()), Err(AuditError::Locked(_))), "one writer");
    assert_eq!(dir.verified(), 4);
    assert_eq!(fs::metadata(dir.paths().log).unwrap().mode() & 0o777, 0o640);
    assert!(matches!(AuditLog::set_up(dir.paths()), Err(AuditError::SetUpAlready(_))));
}

#[test]
fn a_line_that_a_crash_cut_is_removed() {
    let dir = Dir::with(3);
    let mut file = OpenOptions::new().append(true).open(dir.paths().log).unwrap();
    file.write_all(b"{\"seq\":3,\"prev\":\"ab").unwrap();
    let (mut log, tail) = dir.open();
    assert_eq!((tail, log.next_seq()), (Tail::Cut(19), 3));
    log.append(&record(3)).unwrap();
    assert_eq!(dir.verified(), 4);
}

#[test]
fn a_crash_before_the_key_moved_on_costs_no_line() {
    let dir = Dir::with(2);
    let before = fs::read(dir.paths().key).unwrap();
    let (mut log, _) = dir.open();
    (2..5).for_each(|n| log.append(&record(n)).unwrap());
    drop(log);
    fs::write(dir.paths().key, before).unwrap();
    let (mut log, tail) = dir.open();
    assert_eq!((tail, log.next_seq()), (Tail::Expected, 5));
    log.append(&record(5)).unwrap();
    assert_eq!(dir.verified(), 6);
}

#[test]
fn a_log_that_was_changed_while_the_daemon_was_down_is_named_and_found_later() {
    let dir = Dir::with(3);
    let text = fs::read_to_string(dir.paths().log).unwrap();
    fs::write(dir.paths().log, text.replace("\"n\":2", "\"n\":7")).unwrap();
    let (mut log, tail) = dir.open();
    assert_eq!(tail, Tail::Changed);
    log.append(&record(3)).unwrap();
    let error = verify(&dir.parts(), Some(&dir.key), 0, None).unwrap_err().to_string();
    assert!(error.contains(":3: changed: line number 2 "), "{error}");
    drop(log);

    fs::remove_file(dir.paths().log).unwrap();
    let (mut log, tail) = dir.open();
    assert_eq!(tail, Tail::Missing);
    log.append(&record(4)).unwrap();
    let error = verify(&dir.parts(), Some(&dir.key), 0, None).unwrap_err().to_string();
    assert!(error.contains(":1: missing: lines number 0 to 3 "), "{error}");
}

#[test]
fn a_full_log_and_one_that_was_moved_away_go_on_in_new_files() {
    let dir = Dir::with(0);
    let (mut log, _) = dir.open();
    log.max_bytes = 1000;
    (0..20).for_each(|n| log.append(&record(n)).unwrap());
    assert!(dir.parts().len() > 2, "{:?}", dir.parts());
    assert_eq!(dir.verified(), 20);
    // By another program, as logrotate does it.
    fs::rename(dir.paths().log, dir.dir.path().join("moved")).unwrap();
    log.append(&record(20)).unwrap();
    let mut parts = dir.parts();
    parts.push(dir.dir.path().join("moved"));
    assert_eq!(verify(&parts, Some(&dir.key), 0, None).unwrap().lines, 21);
    drop(log);
    // A restart right after a file was renamed.
    let first = first_line(&dir.paths().log).unwrap().unwrap();
    fs::rename(dir.paths().log, dir.paths().part(first)).unwrap();
    assert_eq!(dir.open().1, Tail::Expected);
}

#[test]
fn a_line_that_cannot_be_written_leaves_the_log_as_it_was() {
    let dir = Dir::with(2);
    let (mut log, _) = dir.open();
    // A file that can't be written stands for a full disk; tests/tests/audit.rs fills one.
    let writable = std::mem::replace(&mut log.file, File::open(dir.paths().log).unwrap());
    assert!(matches!(log.append(&record(2)), Err(AuditError::Io { .. })));
    log.file = writable;
    log.append(&record(2)).unwrap();
    assert_eq!(dir.verified(), 3);
}
