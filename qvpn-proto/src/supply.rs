//! Manages the supply of QKD keys: fetches what the role lacks, and reports when the supply stops.

use std::time::Duration;

use qvpn_types::{QkdPolicy, Time};
use rand_core::CryptoRng;

use crate::exchange::{Context, ExchangeRole};
use crate::kms::KeyKind;
use crate::notice::PeerEvent;
use crate::outbox::Outbox;
use crate::stock::{Budget, Verdict};
use crate::timers::Timer;

pub struct Supply {
    /// The number of the last fetch.
    request: u64,
    budget: Budget,
    /// Why the supply stopped, while it is stopped.
    stopped: Option<String>,
}

impl Supply {
    pub fn new(now: Time) -> Self {
        Self { request: 0, budget: Budget::new(now), stopped: None }
    }

    /// Fetches missing keys and sends changes to the peer. Does nothing without an agreement with the peer.
    pub fn poll(
        &mut self,
        role: &mut dyn ExchangeRole,
        ctx: &Context<'_>,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        let wanted = ctx.agreement().filter(|a| a.policy != QkdPolicy::Off && ctx.hellos.refusal.is_none());
        let Some(agreement) = wanted else {
            // Keys end at their age although nothing asks for them any more.
            out.timers.set(Timer::Stock, role.next_expiry());
            return;
        };
        if ctx.qkd_only() {
            out.report_lost(role.keep_only_qkd());
        }
        if role.poll_stock(self.request + 1, ctx, out, rng) {
            self.request += 1;
        }
        self.watch(role, agreement.interval, ctx, out);
    }

    fn watch(&mut self, role: &dyn ExchangeRole, interval: Duration, ctx: &Context<'_>, out: &mut Outbox) {
        if !ctx.session_up {
            self.budget.pause(ctx.now);
            return;
        }
        let (held, target) = (role.stock_count(KeyKind::Qkd), role.stock_target());
        match self.budget.update(held, target, interval, role.supply_fault(), ctx.now) {
            Verdict::Same => {}
            Verdict::Stopped(detail) => {
                self.stopped = Some(detail.clone());
                out.emit(PeerEvent::SupplyStopped { detail, stock: held });
            }
            Verdict::Resumed => {
                self.stopped = None;
                out.emit(PeerEvent::SupplyResumed);
            }
        }
    }

    /// Returns how long the stock lasts at the agreed interval and the recent supply.
    pub fn lasts(&self, interval: Duration, now: Time) -> Duration {
        self.budget.lasts(interval, now)
    }

    /// Returns why the supply stopped, while it is stopped.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref().filter(|_| self.budget.stopped())
    }
}
