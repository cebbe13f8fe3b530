//! Sends `Confirm` until the responder seals in the new epoch.

use std::time::Duration;

use qvpn_types::{LocalEpoch, Time};
use rand_core::CryptoRng;

use crate::backoff::backoff;
use crate::outbox::Outbox;
use crate::timers::Timer;
use crate::wire::MessageType;

/// The interval between two `Confirm`s doubles from the first to the second constant.
const MIN_CONFIRM_INTERVAL: Duration = Duration::from_millis(500);
const MAX_CONFIRM_INTERVAL: Duration = Duration::from_secs(4);

/// The unanswered `Confirm`, if there is one.
#[derive(Default)]
pub struct ConfirmSender(Option<OutstandingConfirm>);

struct OutstandingConfirm {
    epoch: LocalEpoch,
    bytes: Vec<u8>,
    tries: u32,
}

impl ConfirmSender {
    pub fn start(
        &mut self,
        epoch: LocalEpoch,
        bytes: Vec<u8>,
        now: Time,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        self.0 = Some(OutstandingConfirm { epoch, bytes, tries: 0 });
        self.send_again(now, out, rng);
    }

    pub fn epoch(&self) -> Option<LocalEpoch> {
        self.0.as_ref().map(|confirm| confirm.epoch)
    }

    pub fn send_again(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        if let Some(confirm) = &mut self.0 {
            out.channel.send(MessageType::Confirm, &confirm.bytes, now, rng);
            let wait = backoff(MIN_CONFIRM_INTERVAL, MAX_CONFIRM_INTERVAL, confirm.tries);
            confirm.tries += 1;
            out.timers.set(Timer::ConfirmAgain, Some(now + wait));
        }
    }

    /// Sends the `Confirm` again: a repeated `Accept` shows that the responder missed it.
    pub fn repeat_if_unsent(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        if let Some(confirm) = &self.0
            && !out.channel.pending(MessageType::Confirm)
        {
            out.channel.send(MessageType::Confirm, &confirm.bytes, now, rng);
        }
    }

    pub fn stop(&mut self, out: &mut Outbox) {
        self.0 = None;
        out.channel.cancel(MessageType::Confirm);
        out.timers.set(Timer::ConfirmAgain, None);
    }
}
