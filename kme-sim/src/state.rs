//! The state that all tasks of a running simulator share: the network, the faults that are set, and the
//! clock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::config::{Apis, SaeConfig};
use crate::etsi004::streams::Streams;
use crate::faults::catalog::{Faults, Misbehaviour, Ops};
use crate::network::Network;

/// The state that all tasks of a simulator share.
pub(crate) struct Shared {
    pub(crate) network: Mutex<Network>,
    pub(crate) streams: Mutex<Streams>,
    pub(crate) faults: Mutex<BTreeMap<String, Faults>>,
    pub(crate) ports: BTreeMap<String, mpsc::Sender<PortOrder>>,
    pub(crate) apis: BTreeMap<String, Apis>,
    pub(crate) saes: Vec<SaeConfig>,
    pub(crate) started: Instant,
    pub(crate) time_scale: f64,
}

/// A request to set a fault of the port, or none, and the channel for its result.
pub(crate) type PortOrder = (Misbehaviour, oneshot::Sender<Result<(), String>>);

impl Shared {
    /// Locks the network's state. A poisoned lock is good enough for a simulator.
    pub(crate) fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key streams of ETSI GS QKD 004. Lock them before the network.
    pub(crate) fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the simulated time since the start.
    pub(crate) fn now(&self) -> Duration {
        let elapsed = self.started.elapsed();
        if self.time_scale == 1.0 { elapsed } else { elapsed.mul_f64(self.time_scale) }
    }

    pub(crate) fn faults(&self, kme: &str) -> Faults {
        self.all_faults().get(kme).copied().unwrap_or_default()
    }

    pub(crate) fn all_faults(&self) -> MutexGuard<'_, BTreeMap<String, Faults>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a fault. It is in force for the next request when this returns.
    pub(crate) async fn misbehave(&self, kme: &str, ops: Ops, how: Misbehaviour) -> Result<(), String> {
        let Some(port) = self.ports.get(kme) else {
            return Err(format!("there is no KME named {kme:?}"));
        };
        if how.is_of_streams() && !self.apis.get(kme).is_some_and(|apis| apis.etsi004) {
            return Err(format!(
                "{kme} doesn't speak ETSI GS QKD 004, and no other interface has this fault"
            ));
        }
        let faults = self.faults(kme).with(ops, how).map_err(|e| e.to_string())?;
        let (reply, done) = oneshot::channel();
        let stopping = |()| format!("{kme} is stopping");
        port.send((faults.port, reply)).await.map_err(|_| stopping(()))?;
        done.await.map_err(|_| stopping(()))??;
        self.network().forget_first(kme);
        self.all_faults().insert(kme.to_owned(), faults);
        info!(%kme, ?ops, how = how.name(), "misbehaviour set");
        Ok(())
    }
}

/// Waits until the simulator stops.
pub(crate) async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the simulator.
    let _ = stopped.wait_for(|stop| *stop).await;
}
