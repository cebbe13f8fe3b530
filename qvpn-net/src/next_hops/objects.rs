//! Next hop objects (`ip nexthop`), which routes may name instead of their next hops.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::hop::{KernelNextHop, address};
use crate::netlink::{attributes, u32_at};

/// Bytes of `struct nhmsg` and of `struct nexthop_grp`.
const NHMSG: usize = 8;
const MEMBER: usize = 8;
/// The offset of the flags in `struct nhmsg`.
const FLAGS: usize = 4;
const RTNH_F_DEAD: u32 = 1;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

#[derive(Debug, Default)]
struct Object {
    device: Option<u32>,
    gateway: Option<IpAddr>,
    /// IDs and weights of the members of a group.
    members: Vec<(u32, u16)>,
    dropped: bool,
}

/// All objects of the network namespace.
#[derive(Debug, Default)]
pub(crate) struct NextHopObjects(BTreeMap<u32, Object>);

impl NextHopObjects {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the object of an `RTM_NEWNEXTHOP`.
    pub fn add(&mut self, payload: &[u8]) {
        let mut object = Object::default();
        let mut id = None;
        object.dropped = u32_at(payload, FLAGS).is_none_or(|flags| flags & RTNH_F_DEAD != 0);
        for (kind, value) in attributes(payload.get(NHMSG..).unwrap_or_default()) {
            match kind {
                NHA_ID => id = u32_at(value, 0),
                NHA_GROUP => object.members = value.chunks_exact(MEMBER).filter_map(member).collect(),
                NHA_BLACKHOLE => object.dropped = true,
                NHA_OIF => object.device = u32_at(value, 0),
                NHA_GATEWAY => object.gateway = address(value),
                _ => {}
            }
        }
        self.0.extend(id.map(|id| (id, object)));
    }

    /// Returns the next hops through `device` of an object or of a group's members.
    pub fn through(&self, id: u32, device: u32) -> Vec<KernelNextHop> {
        let Some(object) = self.0.get(&id) else { return Vec::new() };
        let single = [(id, 1)];
        // A group can't contain groups.
        let members = if object.members.is_empty() { &single[..] } else { &object.members };
        let live = members.iter().filter_map(|(id, weight)| Some((self.0.get(id)?, *weight)));
        live.filter(|(object, _)| !object.dropped && object.device == Some(device))
            .map(|(object, weight)| KernelNextHop { gateway: object.gateway, weight })
            .collect()
    }
}

/// Parses the ID and the weight; the kernel stores the weight minus 1.
fn member(bytes: &[u8]) -> Option<(u32, u16)> {
    let [_, _, _, _, low, high, ..] = *bytes.first_chunk::<MEMBER>()?;
    Some((u32_at(bytes, 0)?, u16::from_le_bytes([low, high]).saturating_add(1)))
}
