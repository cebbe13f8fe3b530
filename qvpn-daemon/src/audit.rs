//! The audit log: who changed what, and what keys were made of. A separate thread writes it, since each
//! line waits for the disk.

mod shared;
mod writer;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use qvpn_api::config::AuditEpochs;
use qvpn_api::events::{Event, EventKind};
use qvpn_api::status::AuditStatus;
use qvpn_audit::AuditPaths;

use self::shared::Shared;
use self::writer::Writer;
use crate::error::DaemonError;

/// Records that wait for the thread; more are lost, and counted.
const MAX_QUEUED: usize = 1024;
/// How often the thread looks whether a line is due.
const TICK: Duration = Duration::from_secs(30);
/// How soon it tries again to write.
const RETRY: Duration = Duration::from_secs(5);

enum Message {
    Record(Box<Event>),
    Epochs(AuditEpochs),
    Stop,
}

/// The thread that writes the log.
pub(crate) struct AuditTrail {
    sink: AuditSink,
    thread: JoinHandle<()>,
}

/// Where events go.
#[derive(Clone)]
pub(crate) struct AuditSink {
    messages: SyncSender<Message>,
    shared: Arc<Shared>,
}

impl AuditTrail {
    /// Starts the thread. Without `qvpn-ctl audit setup` it writes nothing.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(crate) fn start(interface: &str, epochs: AuditEpochs) -> Result<Self, DaemonError> {
        Self::at(AuditPaths::of(interface), interface, epochs)
    }

    fn at(paths: AuditPaths, interface: &str, epochs: AuditEpochs) -> Result<Self, DaemonError> {
        let shared = Arc::<Shared>::default();
        let (messages, received) = sync_channel(MAX_QUEUED);
        let mut writer = Writer::new(paths, interface, epochs, shared.clone());
        // The log says first that it begins.
        writer.flush();
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || write(writer, &received));
        let thread =
            thread.map_err(|error| DaemonError::system("start the thread of the audit log", error))?;
        Ok(Self { sink: AuditSink { messages, shared }, thread })
    }

    pub(crate) fn sink(&self) -> AuditSink {
        self.sink.clone()
    }

    pub(crate) fn set_epochs(&self, epochs: AuditEpochs) {
        // It fails only if the thread has ended.
        let _ = self.sink.messages.send(Message::Epochs(epochs));
    }

    pub(crate) fn status(&self) -> AuditStatus {
        self.sink.shared.status()
    }

    /// Writes what waits, and ends the thread.
    pub(crate) fn stop(self) {
        let _ = self.sink.messages.send(Message::Stop);
        let _ = self.thread.join();
    }
}

impl AuditSink {
    /// Records the event if the log is about such events. Never waits.
    pub(crate) fn record(&self, event: &Event) {
        let recorded = matches!(
            event.kind,
            EventKind::ConfigChanged { .. }
                | EventKind::ConfigReverted { .. }
                | EventKind::ControlUsed { .. }
                | EventKind::PolicyDegraded { .. }
                | EventKind::EpochActive { .. }
                | EventKind::MachineCopied { .. }
        );
        if recorded && self.messages.try_send(Message::Record(Box::new(event.clone()))).is_err() {
            self.shared.lose_one();
        }
    }
}

fn write(mut writer: Writer, messages: &Receiver<Message>) {
    loop {
        match messages.recv_timeout(if writer.waits() { RETRY } else { TICK }) {
            Ok(Message::Record(event)) => writer.record(&event),
            Ok(Message::Epochs(epochs)) => writer.set_epochs(epochs),
            Err(RecvTimeoutError::Timeout) => writer.tick(),
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return writer.stop(),
        }
    }
}

#[cfg(test)]
mod tests;
