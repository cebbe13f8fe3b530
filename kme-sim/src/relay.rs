//! The trusted-node relay: the route from one KME to another over nodes in between, and the relay of a key.

use std::collections::{BTreeSet, HashMap, VecDeque};

use qvpn_secret::SecretBuf;

use crate::api::DeliveredKey;
use crate::link::{Link, NoRandomness, random_key};

/// Returns the shortest route of links from `from` to `to`, over `relays` only.
pub(crate) fn route(links: &[Link], relays: &BTreeSet<String>, from: &str, to: &str) -> Option<Vec<usize>> {
    if from == to {
        return None;
    }
    let mut came_by: HashMap<&str, usize> = HashMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(here) = queue.pop_front() {
        if here == to {
            let mut route = Vec::new();
            let mut at = here;
            while let Some(link) = came_by.get(at) {
                route.push(*link);
                at = other_side(&links[*link], at);
                if at == from {
                    break;
                }
            }
            route.reverse();
            return Some(route);
        }
        if here != from && !relays.contains(here) {
            continue;
        }
        for (i, link) in links.iter().enumerate().filter(|(_, l)| l.kmes.iter().any(|k| k == here)) {
            let there = other_side(link, here);
            if there != from && !came_by.contains_key(there) {
                came_by.insert(there, i);
                queue.push_back(there);
            }
        }
    }
    None
}

fn other_side<'a>(link: &'a Link, end: &str) -> &'a str {
    let [a, b] = &link.kmes;
    if a == end { b } else { a }
}

/// Relays the key over `hops` more hops. Each node sends `K ⊕ k`, where `k` is bits of the next link, and the
/// next node removes `k`. So each node in between knows the key and must be trusted.
pub(crate) fn carry(key: &DeliveredKey, hops: usize) -> Result<DeliveredKey, NoRandomness> {
    let mut carried = key.duplicate();
    for _ in 0..hops {
        let pad = random_key(carried.key.len())?;
        xor(&mut carried.key, &pad); // what goes over the wire
        xor(&mut carried.key, &pad); // what the next node has
    }
    Ok(carried)
}

fn xor(key: &mut SecretBuf, pad: &SecretBuf) {
    for (byte, pad) in key.expose_mut().iter_mut().zip(pad.expose()) {
        *byte ^= pad;
    }
}
