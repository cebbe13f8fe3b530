//! What the thread of the audit log does: chooses epochs, notes steps of the clock, and keeps records that
//! can't be written for later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use qvpn_api::config::AuditEpochs;
use qvpn_api::events::{Event, EventKind};
use qvpn_api::status::KeySource;
use qvpn_audit::{AuditError, AuditLog, AuditPaths, Tail};
use qvpn_types::Time;
use serde_json::{Value, json};

use super::shared::Shared;
use crate::clock;

/// Records that are kept while the log can't be written.
const MAX_WAITING: usize = 1000;
/// There is a line at least this often, so that a missing end shows.
const ALIVE_INTERVAL: Duration = Duration::from_secs(3600);
/// A smaller difference between the clocks is drift.
const MIN_STEP: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    interface: String,
    paths: AuditPaths,
    epochs: AuditEpochs,
    shared: Arc<Shared>,
    log: Option<AuditLog>,
    /// Lines that are not written yet.
    waiting: VecDeque<String>,
    /// How many lost records the log knows of.
    lost_recorded: u64,
    /// What the peers' latest keys are made of.
    sources: BTreeMap<String, Vec<KeySource>>,
    /// The wall clock and the clock that never steps, at the last look.
    pub(super) clocks: (SystemTime, Time),
    last_line: Time,
    failure: Option<String>,
}

impl Writer {
    pub(super) fn new(paths: AuditPaths, interface: &str, epochs: AuditEpochs, shared: Arc<Shared>) -> Self {
        Self {
            interface: interface.to_owned(),
            paths,
            epochs,
            shared,
            log: None,
            waiting: VecDeque::new(),
            lost_recorded: 0,
            sources: BTreeMap::new(),
            clocks: (SystemTime::now(), clock::now()),
            last_line: clock::now(),
            failure: None,
        }
    }

    /// Whether the last attempt to write failed.
    pub(super) fn waits(&self) -> bool {
        self.failure.is_some()
    }

    pub(super) fn set_epochs(&mut self, epochs: AuditEpochs) {
        self.epochs = epochs;
    }

    pub(super) fn record(&mut self, event: &Event) {
        if !self.wants(&event.kind) {
            return;
        }
        self.note_clock_step();
        // An event always has a JSON form.
        if let Ok(record) = serde_json::to_string(event) {
            self.queue(record);
        }
        self.flush();
    }

    /// Whether an epoch is recorded.
    fn wants(&mut self, kind: &EventKind) -> bool {
        let EventKind::EpochActive { peer, sources, .. } = kind else { return true };
        let before = self.sources.insert(peer.clone(), sources.clone());
        match self.epochs {
            AuditEpochs::All => true,
            AuditEpochs::Changes => before.as_ref() != Some(sources),
            AuditEpochs::Off => false,
        }
    }

    /// Writes what waits, and each hour that the daemon runs.
    pub(super) fn tick(&mut self) {
        self.note_clock_step();
        if self.log.is_some() && clock::now().since(self.last_line) >= ALIVE_INTERVAL {
            let line = self.own("audit.alive", &[]);
            self.queue(line);
        }
        self.flush();
    }

    pub(super) fn stop(mut self) {
        let line = self.own("audit.stopped", &[]);
        self.queue(line);
        self.flush();
    }

    /// Records that the wall clock was set.
    fn note_clock_step(&mut self) {
        let before = std::mem::replace(&mut self.clocks, (SystemTime::now(), clock::now()));
        let expected = before.0 + self.clocks.1.since(before.1);
        let (step, back) = match self.clocks.0.duration_since(expected) {
            Ok(step) => (step, false),
            Err(error) => (error.duration(), true),
        };
        if step >= MIN_STEP {
            let by = if back { -step.as_secs_f64() } else { step.as_secs_f64() };
            let line = self.own("audit.clock_stepped", &[("by_s", json!(by))]);
            self.queue(line);
        }
    }

    fn queue(&mut self, line: String) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(line);
        } else {
            self.shared.lose_one();
        }
    }

    /// Opens the log if need be, and writes what waits.
    pub(super) fn flush(&mut self) {
        if self.log.as_ref().is_some_and(|log| !log.is_current()) {
            self.log = None;
        }
        let result = self.open().and_then(|()| self.write_waiting());
        match result {
            Ok(()) => {
                if self.failure.take().is_some() {
                    tracing::info!("the audit log is written again");
                }
                self.shared.set("on", self.log.as_ref().map(AuditLog::next_seq), None);
            }
            Err(AuditError::NotSetUp(_)) => {
                self.waiting.clear();
                self.failure = None;
                self.shared.set("off", None, None);
            }
            Err(error) => {
                let reason = error.to_string();
                if self.failure.as_ref() != Some(&reason) {
                    tracing::error!("the audit log is not written: {reason}; records wait until it can be");
                }
                self.shared.set("failing", self.log.as_ref().map(AuditLog::next_seq), Some(reason.clone()));
                self.failure = Some(reason);
            }
        }
    }

    fn open(&mut self) -> Result<(), AuditError> {
        if self.log.is_some() {
            return Ok(());
        }
        let (log, tail) = AuditLog::open(self.paths.clone())?;
        self.log = Some(log);
        let found = match tail {
            Tail::Expected => Value::Null,
            Tail::Cut(bytes) => json!(format!("{bytes} bytes of a line that a crash cut were removed")),
            Tail::Changed => json!("the log's end is not what was written last: it was changed"),
            Tail::Missing => json!("the log is empty or was moved away"),
        };
        if let (Some(words), Tail::Changed | Tail::Missing) = (found.as_str(), tail) {
            let file = self.paths.log.display();
            tracing::error!("{file}: {words}; `qvpn-ctl audit verify` says where");
        }
        let version = json!(env!("CARGO_PKG_VERSION"));
        let line = self.own("audit.started", &[("version", version), ("found", found)]);
        self.waiting.push_front(line);
        Ok(())
    }

    fn write_waiting(&mut self) -> Result<(), AuditError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        while let Some(line) = self.waiting.front() {
            log.append(line)?;
            self.waiting.pop_front();
            self.last_line = clock::now();
        }
        let lost = self.shared.lost();
        if lost > self.lost_recorded {
            let line = own(&self.interface, "audit.lost", &[("records", json!(lost - self.lost_recorded))]);
            log.append(&line)?;
            self.lost_recorded = lost;
        }
        Ok(())
    }

    fn own(&self, event: &str, fields: &[(&str, Value)]) -> String {
        own(&self.interface, event, fields)
    }
}

/// A record of the log about itself.
fn own(interface: &str, event: &str, fields: &[(&str, Value)]) -> String {
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    let known = fields.iter().filter(|(_, value)| !value.is_null());
    let fields: String = known.map(|(name, value)| format!(",\"{name}\":{value}")).collect();
    format!("{{\"time\":\"{time}\",\"interface\":{},\"event\":\"{event}\"{fields}}}", json!(interface))
}
