//! The log. It goes to the journal with fields if systemd started us, else to standard error. Its level can
//! change at run time. Of a flood of similar warnings the first ones are written and the rest are counted.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use qvpn_api::config::LogLevel;
use qvpn_api::events::EventKind;
use qvpn_types::Time;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::clock;
use crate::journal::{self, Journal};

/// The maximum number of warnings of one kind that are written within [`FLOOD_WINDOW`].
const MAX_BURST: u32 = 10;
/// The time after which the count starts again and a line reports how many warnings were left out.
const FLOOD_WINDOW: Duration = Duration::from_secs(10);
/// The maximum number of kinds that are counted separately; further kinds count as one.
const MAX_KINDS: usize = 1024;

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts the log, once. All `tracing` events go to it. `fixed` overrides the level of the config.
pub(crate) fn start(fixed: Option<LevelFilter>) {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let out = match journal::is_stderr(&stream) {
        true => match Journal::connect(Path::new(journal::SOCKET)) {
            Ok(journal) => Out::Journal(journal),
            Err(_) => Out::JournalStream,
        },
        false => Out::Stderr { colour: io::stderr().is_terminal() },
    };
    let log = LOG
        .get_or_init(|| Log { fixed: fixed.is_some(), ..Log::new(out, fixed.unwrap_or(LevelFilter::INFO)) });
    tracing_subscriber::registry().with(Writer(log)).init();
}

/// Sets the level of the config, unless the command line has one.
pub(crate) fn configure(level: LogLevel) {
    if let Some(log) = LOG.get().filter(|log| !log.fixed) {
        let level = match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        };
        log.level.store(number(level), Ordering::Relaxed);
        // `tracing` caches for each call site whether it is enabled.
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Adds the interface as a field to all later lines.
pub(crate) fn set_interface(name: &str) {
    if let Some(log) = LOG.get() {
        // A second call would change nothing.
        let _ = log.interface.set(name.to_owned());
    }
}

pub(crate) fn event(kind: &EventKind) {
    let Some(log) = LOG.get() else { return };
    let level = if kind.is_warning() { Level::WARN } else { Level::INFO };
    if number(LevelFilter::from_level(level)) > log.level.load(Ordering::Relaxed) {
        return;
    }
    let fields = kind.fields();
    let about: Vec<&String> =
        fields.iter().filter(|(name, _)| matches!(*name, "peer" | "kme")).map(|(_, value)| value).collect();
    log.line(
        level,
        hash(&(kind.name(), about)),
        &kind.to_string(),
        Some((kind.name(), &fields)),
        clock::now(),
    );
}

/// Writes why the daemon ends: to standard error without a prefix, since errors of a config start with their
/// place; or to the journal.
pub(crate) fn exit_report(text: &str) {
    match LOG.get() {
        Some(log) if !matches!(log.out, Out::Stderr { .. }) => {
            text.lines().for_each(|line| log.write(Level::ERROR, line, None))
        }
        _ => eprintln!("{text}"),
    }
}

/// Reports what was left out of floods that ended. Call it regularly.
pub(crate) fn tick(now: Time) {
    if let Some(log) = LOG.get() {
        log.report_left_out(now);
    }
}

enum Out {
    /// The journal, with fields.
    Journal(Journal),
    /// Standard error that the journal reads: it expects a level before each line (sd-daemon(3)).
    JournalStream,
    Stderr {
        colour: bool,
    },
}

struct Log {
    out: Out,
    level: AtomicUsize,
    /// Whether the command line sets the level.
    fixed: bool,
    interface: OnceLock<String>,
    floods: Mutex<HashMap<u64, Flood>>,
}

/// Warnings of one kind.
struct Flood {
    since: Time,
    seen: u32,
    level: Level,
    /// The last line that was left out.
    last: String,
}

impl Log {
    fn new(out: Out, level: LevelFilter) -> Self {
        let (level, interface) = (AtomicUsize::new(number(level)), OnceLock::new());
        Self { out, level, fixed: false, interface, floods: Mutex::default() }
    }

    /// Writes a line, or counts it if it belongs to a flood.
    fn line(
        &self,
        level: Level,
        kind: u64,
        text: &str,
        event: Option<(&str, &[(&'static str, String)])>,
        now: Time,
    ) {
        if level <= Level::WARN && !self.admit(level, kind, text, now) {
            return;
        }
        self.write(level, text, event);
    }

    /// Counts a warning. Returns whether to write it.
    fn admit(&self, level: Level, kind: u64, text: &str, now: Time) -> bool {
        self.report_left_out(now);
        let mut floods = self.floods.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = if floods.contains_key(&kind) || floods.len() < MAX_KINDS { kind } else { 0 };
        let flood = floods.entry(kind).or_insert(Flood { since: now, seen: 0, level, last: String::new() });
        flood.seen += 1;
        if flood.seen > MAX_BURST {
            text.clone_into(&mut flood.last);
        }
        flood.seen <= MAX_BURST
    }

    fn report_left_out(&self, now: Time) {
        let mut over = Vec::new();
        self.floods.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, flood| {
            let is_over = now.since(flood.since) >= FLOOD_WINDOW;
            if is_over && flood.seen > MAX_BURST {
                over.push((flood.level, flood.seen - MAX_BURST, std::mem::take(&mut flood.last)));
            }
            !is_over
        });
        for (level, n, last) in over {
            self.write(
                level,
                &format!("{last} ({n} lines like this were left out within {} s)", FLOOD_WINDOW.as_secs()),
                None,
            );
        }
    }

    fn write(&self, level: Level, text: &str, event: Option<(&str, &[(&'static str, String)])>) {
        // The daemon continues if the log can't be written.
        let _ = match &self.out {
            Out::Journal(journal) => {
                let names: Vec<String> = event
                    .iter()
                    .flat_map(|(_, fields)| fields.iter())
                    .map(|(name, _)| format!("QVPN_{}", name.to_uppercase()))
                    .collect();
                let mut fields = vec![
                    ("MESSAGE", text),
                    ("PRIORITY", priority(level)),
                    ("SYSLOG_IDENTIFIER", "qvpn-daemon"),
                ];
                fields.extend(self.interface.get().map(|name| ("QVPN_INTERFACE", name.as_str())));
                if let Some((name, values)) = event {
                    fields.push(("QVPN_EVENT", name));
                    fields.extend(
                        names.iter().zip(values).map(|(name, (_, value))| (name.as_str(), value.as_str())),
                    );
                }
                journal.write(&fields).or_else(|_| writeln!(io::stderr(), "<{}>{text}", priority(level)))
            }
            Out::JournalStream => writeln!(io::stderr(), "<{}>{text}", priority(level)),
            Out::Stderr { colour } => {
                let time = humantime::format_rfc3339_micros(SystemTime::now());
                let (on, off) = if *colour { (colour_of(level), "\u{1b}[0m") } else { ("", "") };
                writeln!(io::stderr(), "{time} {on}{level:>5}{off} {text}")
            }
        };
    }
}

/// Receives the events of `tracing`.
struct Writer(&'static Log);

impl<S: Subscriber> Layer<S> for Writer {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        let level = *metadata.level();
        // boringtun's messages name no peer and give no advice. The peer itself reports what matters.
        let level = if metadata.target().starts_with("boringtun") { Level::TRACE } else { level };
        number(LevelFilter::from_level(level)) <= self.0.level.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        // The text before the first colon names the subject of a line.
        let about = text.0.split(':').next().unwrap_or_default();
        let kind = hash(&(metadata.file(), metadata.line(), about));
        self.0.line(*metadata.level(), kind, &text.0, None, clock::now());
    }
}

/// The message, then all other fields.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string can't fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Returns a level as a number from 0 (off) to 5 (trace).
fn number(level: LevelFilter) -> usize {
    match level {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => 1,
        LevelFilter::WARN => 2,
        LevelFilter::INFO => 3,
        LevelFilter::DEBUG => 4,
        _ => 5,
    }
}

/// Returns a level as a number of syslog(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

fn colour_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        _ => "\u{1b}[2m",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// Makes a log to a journal whose lines the test can read.
    fn log() -> (tempfile::TempDir, UnixDatagram, Log) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let end = UnixDatagram::bind(&path).unwrap();
        end.set_nonblocking(true).unwrap();
        let log = Log::new(Out::Journal(Journal::connect(&path).unwrap()), LevelFilter::INFO);
        (dir, end, log)
    }

    fn lines(end: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| {
            end.recv(&mut buffer).ok().map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned())
        })
        .collect()
    }

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn an_event_has_a_field_for_each_fact() {
        let (_dir, end, log) = log();
        log.interface.set("qvpn0".to_owned()).unwrap();
        let kind = EventKind::PeerBlocked { peer: "site-b".into(), reason: "no key\nat all".into() };
        log.line(Level::WARN, 1, &kind.to_string(), Some((kind.name(), &kind.fields())), at(0));
        let lines = lines(&end);
        for part in [
            "MESSAGE=peer.blocked peer=site-b reason=\"no key\\nat all\"\n",
            "PRIORITY=4\n",
            "SYSLOG_IDENTIFIER=qvpn-daemon\n",
            "QVPN_INTERFACE=qvpn0\n",
            "QVPN_EVENT=peer.blocked\n",
            "QVPN_PEER=site-b\n",
            "QVPN_REASON\n",
        ] {
            assert!(lines[0].contains(part), "{part}: {lines:?}");
        }
    }

    #[test]
    fn lines_of_the_handshake_library_are_for_tracing_only() {
        let (_dir, end, log) = log();
        let log: &'static Log = Box::leak(Box::new(log));
        let written = |level: LevelFilter| {
            log.level.store(number(level), Ordering::Relaxed);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(Writer(log)), || {
                tracing::callsite::rebuild_interest_cache();
                tracing::error!(target: "boringtun::noise::timers", "CONNECTION_EXPIRED");
                tracing::error!(target: "qvpn_daemon::peers", "ours");
            });
            lines(&end).concat()
        };
        let debug = written(LevelFilter::DEBUG);
        assert!(debug.contains("MESSAGE=ours") && !debug.contains("CONNECTION_EXPIRED"), "{debug}");
        assert!(written(LevelFilter::TRACE).contains("MESSAGE=CONNECTION_EXPIRED"));
    }

    #[test]
    fn a_flood_of_warnings_is_counted_and_hides_no_other_kind() {
        let (_dir, end, log) = log();
        let mut written = 0;
        for n in 0..500 {
            log.line(Level::WARN, 1, &format!("flood {n}"), None, at(n));
            written += lines(&end).len();
        }
        assert_eq!(written, usize::try_from(MAX_BURST).unwrap());
        log.line(Level::WARN, 2, "another", None, at(600));
        log.line(Level::INFO, 1, "no warning", None, at(601));
        assert_eq!(lines(&end).len(), 2);
        log.report_left_out(at(9_000));
        assert!(lines(&end).is_empty());
        log.report_left_out(at(10_000));
        let told = lines(&end);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].contains("MESSAGE=flood 499 (490 lines like this were left out within 10 s)"),
            "{told:?}"
        );
        log.line(Level::WARN, 1, "flood again", None, at(10_001));
        assert_eq!(lines(&end).len(), 1);
    }

    #[test]
    fn a_flood_of_kinds_is_bounded() {
        let (_dir, end, log) = log();
        let mut written = 0;
        for n in 0..5000 {
            log.line(Level::ERROR, n, "kind", None, at(0));
            written += lines(&end).len();
        }
        assert!(written <= MAX_KINDS + 2 * usize::try_from(MAX_BURST).unwrap(), "{written}");
        assert!(log.floods.lock().unwrap().len() <= MAX_KINDS + 1);
    }
}
