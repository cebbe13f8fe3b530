use std::fs;

use super::*;
use crate::{AuditLog, AuditPaths};

/// A log of eight lines, and its key.
fn log() -> (tempfile::TempDir, PathBuf, VerificationKey) {
    let dir = tempfile::tempdir().unwrap();
    let paths = AuditPaths::within(dir.path(), dir.path(), "qvpn0");
    let (mut log, key) = AuditLog::set_up(paths.clone()).unwrap();
    for n in 0..8 {
        log.append(&format!("{{\"time\":\"t{n}\",\"event\":\"e\",\"by\":\"user{n}\"}}")).unwrap();
    }
    (dir, paths.log, key)
}

/// What verification finds in a log that `edit` changed; also without the key.
#[track_caller]
fn after(edit: impl FnOnce(&mut Vec<String>)) -> [Result<Report, (u64, Fault)>; 2] {
    let (_dir, path, key) = log();
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    edit(&mut lines);
    fs::write(&path, lines.concat()).unwrap();
    [Some(&key), None].map(|key| {
        verify(std::slice::from_ref(&path), key, 0, Some(8)).map_err(|error| match error {
            VerifyError::Found(finding) => (finding.at, finding.fault),
            VerifyError::Io { .. } => panic!("{error}"),
        })
    })
}

#[test]
fn a_whole_log_is_verified() {
    let [with, without] = after(|_| {});
    let last = LastLine { seq: 7, time: "t7".into(), event: "e".into() };
    assert_eq!(with, Ok(Report { lines: 8, last: Some(last) }));
    assert_eq!(with, without);
}

#[test]
fn the_first_wrong_line_is_found() {
    let [with, without] = after(|lines| lines[3] = lines[3].replace("user3", "user9"));
    assert_eq!(with, Err((4, Fault::Changed)));
    assert_eq!(without, Err((5, Fault::Unchained)));
    let both = |edit: fn(&mut Vec<String>)| {
        let [with, without] = after(edit);
        assert_eq!(with, without);
        with
    };
    assert_eq!(both(|lines| lines.swap(2, 5)), Err((3, Fault::Reordered)));
    assert_eq!(both(|lines| drop(lines.drain(2..5))), Err((3, Fault::Missing(2, 4))));
    assert_eq!(both(|lines| drop(lines.remove(0))), Err((1, Fault::Missing(0, 0))));
    assert_eq!(both(|lines| lines.insert(4, lines[1].clone())), Err((5, Fault::Repeated)));
    assert_eq!(both(|lines| lines.truncate(6)), Err((7, Fault::Truncated(6, 8))));
    assert_eq!(both(|lines| lines.clear()), Err((1, Fault::Truncated(0, 8))));
    assert_eq!(both(|lines| lines[7].truncate(30)), Err((8, Fault::Cut)));
    assert_eq!(both(|lines| assert_eq!(lines[7].pop(), Some('\n'))), Err((8, Fault::Cut)));
    assert_eq!(both(|lines| lines[2].insert(0, 'x')), Err((3, Fault::Changed)));
    assert_eq!(both(|lines| lines.insert(2, "\n".into())), Err((3, Fault::Changed)));
}

#[test]
fn a_chain_that_was_made_again_has_wrong_seals() {
    // Everybody can hash; the key of the past is needed to seal.
    let [with, without] = after(|lines| {
        let forger = SealKey(qvpn_secret::Secret::filled(|b| b.fill(3)));
        let mut prev = line::hash(lines[2].trim_end().as_bytes());
        for (seq, line) in (3..).zip(&mut lines[3..]) {
            *line = line::sealed(seq, &prev, "{\"event\":\"forged\"}", &forger);
            prev = line::hash(line.trim_end().as_bytes());
        }
    });
    assert_eq!(with, Err((4, Fault::Changed)));
    assert!(without.is_ok());
    let [with, _] = after(|lines| lines[3] = lines[3].replace("\"seq\":3", "\"seq\":18446744073709551615"));
    assert_eq!(with, Err((4, Fault::Changed)));
}

#[test]
fn lines_that_were_archived_are_left_out_on_request() {
    let (_dir, path, key) = log();
    let text = fs::read_to_string(&path).unwrap();
    let rest: Vec<&str> = text.split_inclusive('\n').skip(5).collect();
    fs::write(&path, rest.concat()).unwrap();
    let check = |first| verify(std::slice::from_ref(&path), Some(&key), first, Some(8));
    assert_eq!(check(5).unwrap().lines, 3);
    assert!(check(0).unwrap_err().to_string().contains("missing: lines number 0 to 4"));
    let other =
        VerificationKey::from_text("qvpn1-audit-+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=").unwrap();
    assert!(verify(&[path], Some(&other), 5, None).is_err());
}
