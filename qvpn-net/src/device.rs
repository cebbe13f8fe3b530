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
                    // The kernel may have removed it along with another.
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

    /// Takes the device of `plan` up again, and restores those of `addresses` that it has lost, after
    /// [`Watch::changed`](crate::Watch::changed). What others added stays. [`Changes::is_empty`] if there
    /// was nothing to do.
    ///
    /// # Errors
    /// As [`set_addresses`](Self::set_addresses) and [`set_link_up`](Self::set_link_up).
    pub async fn restore_device(
        &self,
        plan: &RoutePlan,
        addresses: &[IpNet],
        mtu: u32,
    ) -> Result<Changes, NetError> {
        let interface = plan.interface();
        let what = format!("addresses of {interface}");
        let index = self.device(plan).await.map_err(|error| NetError::refused(&what, error))?;
        let missing = || NetError::NoInterface { name: interface.to_owned(), what: what.clone() };
        let index = index.ok_or_else(missing)?;
        let mut changes = Changes::default();
        // First, since the kernel takes IPv6 addresses away from a device that is down.
        let up = kernel::is_up(&self.handle, index).await.map_err(|error| NetError::refused(&what, error))?;
        if !up {
            let set = kernel::set_link(&self.handle, index, Some(mtu), true).await;
            set.map_err(|error| NetError::refused(format!("{interface} up with MTU {mtu}"), error))?;
            changes.added.push(format!("{interface} up"));
        }
        let present = self.addresses(index, &what).await?;
        let added = self.add_missing(interface, index, addresses, &present).await?;
        changes.added.extend(added.iter().map(|net| format!("address {net} on {interface}")));
        Ok(changes)
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

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    // IFA_LOCAL is ours where there is a peer address beside it (IPv4); IPv6 has IFA_ADDRESS alone.
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
