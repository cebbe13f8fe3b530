//! The tunnel's device: its addresses, its MTU and its state, restored when another program changes them.

use std::io;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};

use crate::apply::{Net, to_io};
use crate::changes::Changes;
use crate::error::NetError;
use crate::kernel;
use crate::plan::RoutePlan;

/// The state of the tunnel's device after everything that can be restored has been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceState {
    /// Its name, state and addresses are right.
    Up,
    /// It has this name, because another device has taken its own.
    Renamed(String),
    /// It was deleted, or moved to another network namespace.
    Missing,
}

impl Net {
    /// Gives `interface` exactly these addresses (with their prefix lengths), adding before removing. The
    /// kernel's own IPv6 link-local address stays, unless `addresses` has one.
    ///
    /// # Errors
    /// No such interface, no permission, or an address that the kernel refuses.
    pub async fn set_addresses(&self, interface: &str, addresses: &[IpNet]) -> Result<(), NetError> {
        let what = format!("addresses of {interface}");
        let index = self.index(interface, &what).await?;
        let own_link_local = addresses.iter().any(is_link_local);
        if own_link_local {
            // The kernel would add a random one beside it, which peers don't know.
            let set = kernel::forbid_link_local(&self.handle, index).await;
            set.map_err(|error| NetError::refused(&what, error))?;
        }
        let present = self.addresses(index, &what).await?;
        self.add_missing(interface, index, addresses, &present).await?;
        for (net, message) in present {
            let of_kernel = message.header.scope == AddressScope::Link && net.addr().is_ipv6();
            let kept = of_kernel && !own_link_local;
            if !kept && !addresses.contains(&net) {
                match self.handle.address().del(message).execute().await.map_err(to_io) {
                    // The kernel may have removed it together with another address.
                    Err(error) if error.kind() != io::ErrorKind::AddrNotAvailable => {
                        return Err(NetError::refused(
                            format!("removing address {net} from {interface}"),
                            error,
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Sets the MTU (bytes) of `interface` and takes it up.
    ///
    /// # Errors
    /// No such interface, no permission, or an MTU that the kernel refuses.
    pub async fn set_link_up(&self, interface: &str, mtu: u32) -> Result<(), NetError> {
        let what = format!("{interface} up with MTU {mtu}");
        let index = self.index(interface, &what).await?;
        let set = kernel::set_link(&self.handle, index, Some(mtu), true).await;
        set.map_err(|error| NetError::refused(what, error))
    }

    /// Gives the device of `plan` its name back, takes it up again, and restores those of `addresses` that it
    /// has lost. Addresses that others added stay. [`Changes::is_empty`] if there was nothing to do.
    ///
    /// # Errors
    /// A refusal by the kernel. A device that is gone is a [`DeviceState`].
    pub async fn restore_device(
        &self,
        plan: &RoutePlan,
        addresses: &[IpNet],
        mtu: u32,
    ) -> Result<(DeviceState, Changes), NetError> {
        let interface = plan.interface();
        let what = format!("restoring the device {interface}");
        let mut changes = Changes::default();
        let index = self.device(plan).await.map_err(|error| NetError::refused(&what, error))?;
        let Some(index) = index else { return Ok((DeviceState::Missing, changes)) };
        let state = self.restore_name(index, interface, &mut changes).await;
        let state = state.map_err(|error| NetError::refused(&what, error))?;
        // First of all, since the kernel removes the IPv6 addresses of a device that is down.
        let up = kernel::is_up(&self.handle, index).await.map_err(|error| NetError::refused(&what, error))?;
        if !up {
            let set = kernel::set_link(&self.handle, index, Some(mtu), true).await;
            set.map_err(|error| NetError::refused(format!("{interface} up with MTU {mtu}"), error))?;
            changes.added.push(format!("{interface} up"));
        }
        let present = self.addresses(index, &what).await?;
        let added = self.add_missing(interface, index, addresses, &present).await?;
        changes.added.extend(added.iter().map(|net| format!("address {net} on {interface}")));
        Ok((state, changes))
    }

    async fn restore_name(
        &self,
        index: u32,
        interface: &str,
        changes: &mut Changes,
    ) -> io::Result<DeviceState> {
        let Some(name) = kernel::name_of(&self.handle, index).await? else { return Ok(DeviceState::Missing) };
        if name == interface {
            return Ok(DeviceState::Up);
        }
        let mut renamed = kernel::rename(&self.handle, index, interface).await;
        // Before Linux 6.2 a device must be down to be renamed.
        if renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
            kernel::set_down(&self.handle, index).await?;
            renamed = kernel::rename(&self.handle, index, interface).await;
        }
        match renamed {
            Ok(()) => {
                changes.added.push(format!("the name of {interface} (was {name})"));
                Ok(DeviceState::Up)
            }
            // Another device has the name.
            Err(_) => Ok(DeviceState::Renamed(name)),
        }
    }

    async fn addresses(&self, index: u32, what: &str) -> Result<Vec<(IpNet, AddressMessage)>, NetError> {
        self.handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_filter_map(async |message| Ok(address_of(&message).map(|net| (net, message))))
            .try_collect()
            .await
            .map_err(|error| NetError::refused(what, to_io(error)))
    }

    async fn add_missing(
        &self,
        interface: &str,
        index: u32,
        wanted: &[IpNet],
        present: &[(IpNet, AddressMessage)],
    ) -> Result<Vec<IpNet>, NetError> {
        let mut added = Vec::new();
        for net in wanted.iter().filter(|net| !present.iter().any(|(have, _)| have == *net)) {
            match self
                .handle
                .address()
                .add(index, net.addr(), net.prefix_len())
                .execute()
                .await
                .map_err(to_io)
            {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(NetError::refused(format!("address {net} on {interface}"), error));
                }
                _ => added.push(*net),
            }
        }
        Ok(added)
    }
}

fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

pub(crate) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    // With a peer address, IFA_LOCAL is our address (IPv4); IPv6 has only IFA_ADDRESS.
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => address = Some(*ip),
            AddressAttribute::Address(ip) if address.is_none() => address = Some(*ip),
            _ => {}
        }
    }
    IpNet::new(address?, message.header.prefix_len).ok()
}
