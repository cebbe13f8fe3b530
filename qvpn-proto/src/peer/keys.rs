//! The keys of both sites in use, and the role, which may follow from them. Both may change while epochs go
//! on.

use qvpn_identity::PublicIdentity;
use qvpn_types::Time;
use rand_core::CryptoRng;

use super::Peer;
use crate::notice::PeerEvent;
use crate::session::ControlLink;
use crate::wire::MessageType;

impl<L: ControlLink> Peer<L> {
    /// Returns the peer's keys in use: that of the control session, and that of the epoch in force if it is
    /// another one.
    #[must_use]
    pub fn remotes_in_use(&self) -> Vec<PublicIdentity> {
        let session = self.config.remote;
        let epoch = self.epochs.active.as_ref().map(|epoch| epoch.parties.remote);
        std::iter::once(session).chain(epoch.filter(|epoch| *epoch != session)).collect()
    }

    /// Whether our former key is still held, since the peer has not answered the new one.
    #[must_use]
    pub fn holds_former_key(&self) -> bool {
        self.control.holds_former_key()
    }

    /// Goes on with the keys of a session that came into use.
    pub(super) fn on_switched(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let (own, peer) = (*self.config.local.public(), self.config.remote);
        self.follow_keys(now, rng);
        let to = self.config.remote;
        if to != peer {
            self.out.emit(PeerEvent::KeyChanged { own: false, from: peer, to });
        }
        let to = *self.config.local.public();
        if to != own {
            self.out.emit(PeerEvent::KeyChanged { own: true, from: own, to });
        }
    }

    /// Calls the peer with our new key, or ends the former one.
    pub(super) fn on_key_change(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        if self.control.on_key_change(now, &mut self.out) {
            self.follow_keys(now, rng);
            let detail = format!(
                "the other site does not answer our new key, {}, and the former one is erased now; add the \
                 new public key there and reload",
                self.config.local.public().fingerprint()
            );
            self.out.emit(PeerEvent::IdentityMismatch { detail });
        }
    }

    /// Puts the link's keys in use. Epochs go on, and the next one is due at once. Nothing that was agreed
    /// under the former keys counts for it: both sites exchange `Hello`s again.
    pub(super) fn follow_keys(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let Some(keys) = self.control.keys() else { return };
        let own_changed = keys.local.public() != self.config.local.public();
        if !own_changed && keys.remote == self.config.remote {
            return;
        }
        let former_role = self.config.role;
        self.config.use_keys(keys);
        self.role.drop_attempt(&mut self.out);
        let role_changed = self.config.role != former_role;
        if role_changed {
            self.replace_role(now, rng);
        }
        self.hellos.on_keys_changed();
        if own_changed || role_changed {
            self.hellos.renew(&self.config, now, &mut self.out, rng);
        }
        self.role.attempt_due(now);
    }

    /// Starts a role without stock and attempts. For the peer, this side is a new instance: it voids what it
    /// knows of the former role's stock and offers its own again.
    pub(super) fn replace_role(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.role.drop_attempt(&mut self.out);
        for kind in [
            MessageType::StockOffer,
            MessageType::StockAck,
            MessageType::Accept,
            MessageType::Confirm,
            MessageType::Rekey,
        ] {
            self.out.channel.cancel(kind);
        }
        self.counters = self.role.counters(self.counters);
        self.role = super::role(&self.config, self.counters, now);
        self.hellos.new_instance(rng);
        self.epochs.no_restart_since_epoch = false;
    }

    /// Ends the change of our key once an epoch is made with it.
    pub(super) fn poll_key_change(&mut self) {
        let epoch = self.epochs.active.as_ref().map(|epoch| epoch.parties);
        if self.control.awaits_epoch() && epoch == Some(self.config.parties()) {
            self.control.key_changed(&mut self.out);
        }
    }
}
