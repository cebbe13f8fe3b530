//! `audit`: begins, verifies and prints the audit log of an interface.

use std::fs::{DirBuilder, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::{User, getuid};
use qvpn_audit::{AuditError, AuditLog, AuditPaths, Finding, Report, VerificationKey, VerifyError};
use serde_json::{Map, Value, json};

use crate::cli::{AuditCommand, AuditFilter};
use crate::dirs::Dirs;
use crate::error::CtlError;
use crate::keys;
use crate::output::{self, clean};

/// The user of the daemon, which writes the log.
const USER: &str = "qvpn";

pub(crate) fn run(command: AuditCommand, dirs: &Dirs) -> Result<(), CtlError> {
    match command {
        AuditCommand::Setup { interface } => setup(&dirs.interface(interface)?),
        AuditCommand::Verify { interface, files, key_file, first, json } => {
            verify(&Log::find(dirs, interface, files)?, key_file.as_deref(), first, json)
        }
        AuditCommand::Show { interface, files, filter, json } => {
            show(&Log::find(dirs, interface, files)?, &filter, json)
        }
    }
}

fn setup(interface: &str) -> Result<(), CtlError> {
    let paths = AuditPaths::of(interface);
    let owner = User::from_name(USER).ok().flatten().filter(|_| getuid().is_root());
    let own = |path: &Path| match &owner {
        Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
        None => Ok(()),
    };
    for (file, mode) in [(&paths.log, 0o750), (&paths.key, 0o700)] {
        let Some(dir) = file.parent() else { continue };
        let made = DirBuilder::new().mode(mode).create(dir).and_then(|()| own(dir));
        match made {
            Err(error)
                if ![io::ErrorKind::AlreadyExists, io::ErrorKind::InvalidInput].contains(&error.kind()) =>
            {
                return Err(CtlError::Directory { dir: dir.to_owned(), source: error });
            }
            _ => {}
        }
    }
    let (mut log, key) = AuditLog::set_up(paths.clone())?;
    let uid = getuid();
    let by = User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name);
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    let fields = format!("\"by\":{},\"uid\":{}", json!(by), uid.as_raw());
    let record =
        format!("{{\"time\":\"{time}\",\"interface\":\"{interface}\",\"event\":\"audit.setup\",{fields}}}");
    log.append(&record)?;
    for file in [&paths.log, &paths.key] {
        match own(file) {
            // A user namespace without that user.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            result => result.map_err(|source| AuditError::Io { path: file.clone(), source })?,
        }
    }
    drop(log);
    output::note(&format!(
        "The audit log is {}; the running daemon writes to it from now on. The next line is the key that \
         verifies it. It is stored nowhere: keep it away from this machine, because with it and this \
         machine the log can be forged.",
        paths.log.display()
    ));
    keys::write_secret(&key.to_text())
}

/// The files of a log.
struct Log {
    files: Vec<PathBuf>,
    /// Where this machine keeps it.
    paths: Option<AuditPaths>,
}

impl Log {
    fn find(dirs: &Dirs, interface: Option<String>, files: Vec<PathBuf>) -> Result<Self, CtlError> {
        if !files.is_empty() {
            return Ok(Self { files, paths: None });
        }
        let paths = AuditPaths::of(&dirs.interface(interface)?);
        let dir = paths.log.parent().map(Path::to_owned).unwrap_or_default();
        let files = paths.parts().map_err(|source| CtlError::Directory { dir, source })?;
        match files.is_empty() {
            true => Err(CtlError::NoAuditLog(paths.log)),
            false => Ok(Self { files, paths: Some(paths) }),
        }
    }
}

fn verify(log: &Log, key: Option<&Path>, first: u64, json: bool) -> Result<(), CtlError> {
    // Before the log is read: a running daemon writes on.
    let next = log.paths.as_ref().and_then(|paths| AuditLog::next_seq_of(paths).ok().flatten());
    let key = key.map(read_key).transpose()?;
    let result = match qvpn_audit::verify(&log.files, key.as_ref(), first, next) {
        Ok(report) => Ok(report),
        Err(VerifyError::Found(finding)) => Err(finding),
        Err(error) => return Err(error.into()),
    };
    if json {
        output::print_json(&as_json(&result, key.is_some()))?;
    }
    match result {
        Ok(report) if !json => output::print(&in_words(&report, key.is_some(), next.is_some())),
        Ok(_) => Ok(()),
        Err(finding) => Err(CtlError::Audited(finding)),
    }
}

fn as_json(result: &Result<Report, Finding>, sealed: bool) -> Value {
    let report = result.as_ref().ok();
    let last = report.and_then(|report| report.last.as_ref());
    let last = last.map(|last| json!({"seq": last.seq, "time": last.time, "event": last.event}));
    let found = result.as_ref().err().map(|finding| {
        json!({"file": finding.file, "line": finding.at, "seq": finding.seq, "text": finding.to_string()})
    });
    json!({
        "schema": 1, "ok": result.is_ok(), "seals_checked": sealed,
        "lines": report.map(|report| report.lines), "last": last, "found": found,
    })
}

fn in_words(report: &Report, sealed: bool, end_known: bool) -> String {
    let last = report.last.as_ref().map_or_else(
        || "there is no line".to_owned(),
        |last| format!("the last is number {}, {} of {}", last.seq, last.event, last.time),
    );
    let mut text = format!("{} lines are as they were written; {last}\n", report.lines);
    if !sealed {
        text += "only the chain of hashes was checked, which an attacker can make again: `--key-file` \
                 checks the seals\n";
    }
    if !end_known {
        text += "a missing end is not seen here; while the daemon runs there is a line each hour\n";
    }
    clean_lines(&text)
}

fn clean_lines(text: &str) -> String {
    text.lines().map(|line| clean(line) + "\n").collect()
}

fn read_key(file: &Path) -> Result<VerificationKey, CtlError> {
    let text = match file == Path::new("-") {
        true => keys::read_input()?,
        false => {
            let open = File::open(file).map_err(|source| AuditError::Io { path: file.to_owned(), source })?;
            keys::read_secret(open)?
        }
    };
    Ok(VerificationKey::from_text(keys::as_text(&text))?)
}

fn show(log: &Log, filter: &AuditFilter, json: bool) -> Result<(), CtlError> {
    for file in &log.files {
        let failed = |source| CtlError::from(AuditError::Io { path: file.clone(), source });
        for line in BufReader::new(File::open(file).map_err(failed)?).split(b'\n') {
            let line = String::from_utf8_lossy(&line.map_err(failed)?).into_owned();
            let Ok(fields) = serde_json::from_str::<Map<String, Value>>(&line) else {
                output::note(&format!("{}: not a line of an audit log: {}", file.display(), clean(&line)));
                continue;
            };
            if wanted(&fields, filter) {
                output::print(&if json { line + "\n" } else { as_text(&fields) })?;
            }
        }
    }
    Ok(())
}

fn wanted(fields: &Map<String, Value>, filter: &AuditFilter) -> bool {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let event = text("event");
    let of_kind = |kind: &String| {
        event == kind || event.strip_prefix(kind.as_str()).is_some_and(|rest| rest.starts_with('.'))
    };
    let time = humantime::parse_rfc3339(text("time")).ok();
    filter.peer.as_ref().is_none_or(|peer| text("peer") == peer)
        && (filter.kind.is_empty() || filter.kind.iter().any(of_kind))
        && filter.since.is_none_or(|since| time.is_some_and(|time| time >= since))
}

/// `17 2026-12-01T10:00:00.000Z config.changed by=root uid=0 …`, without hash and seal.
fn as_text(fields: &Map<String, Value>) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '"') => {
            text.clone()
        }
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("+"),
        value => value.to_string(),
    };
    let field = |name: &str| fields.get(name).map(plain).unwrap_or_default();
    let mut line = format!("{} {} {}", field("seq"), field("time"), field("event"));
    let shown = ["seq", "time", "event", "interface", "prev", "seal"];
    for (name, value) in fields.iter().filter(|(name, v)| !shown.contains(&name.as_str()) && !v.is_null()) {
        line += &format!(" {name}={}", plain(value));
    }
    clean(&line) + "\n"
}
