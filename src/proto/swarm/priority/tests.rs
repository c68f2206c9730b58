use std::collections::VecDeque;

use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::peer_list::BY_LOT;
use super::*;

fn of(a: &str, b: &str) -> u32 {
    let addr = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 6881);
    priority(addr(a), addr(b))
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
    let v6 = any::<[u8; 16]>().prop_map(IpAddr::from);
    (prop_oneof![v4, v6], any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

#[test]
fn the_vectors_of_bep_40_come_out() {
    assert_eq!(of("123.213.32.10", "98.76.54.32"), 0xec2d_7224);
    assert_eq!(of("123.213.32.10", "123.213.32.234"), 0x9956_8189);
}

#[test]
fn addresses_of_one_16_are_told_apart_by_three_octets() {
    let expected = crc32c(&[203, 0, 113, 0x55, 203, 0, 114, 0x54]);
    assert_eq!(of("203.0.114.254", "203.0.113.255"), expected);
}

#[test]
fn addresses_of_one_48_are_told_apart_by_seven_octets() {
    let far = of("2001:db8:1:ffff::", "2001:db8:2:ffff::");
    assert_eq!(far, of("2001:db8:1:5555::", "2001:db8:2:5555::"));
    let near = of("2001:db8:1:12ff::", "2001:db8:1:34ff::");
    assert_eq!(near, of("2001:db8:1:1255::", "2001:db8:1:3455::"));
    assert_ne!(near, of("2001:db8:1:1055::", "2001:db8:1:3455::"));
    let nearer = of("2001:db8:1:12fe::", "2001:db8:1:12ff::");
    assert_ne!(nearer, of("2001:db8:1:12fe::", "2001:db8:1:125f::"));
}

#[test]
fn peers_at_one_address_are_told_apart_by_their_ports() {
    let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
    assert_eq!(priority(at(0x1ae1), at(0x0050)), crc32c(&[0x00, 0x50, 0x1a, 0xe1]));
}

proptest! {
    #[test]
    fn both_ends_agree(a in address(), b in address()) {
        prop_assert_eq!(priority(a, b), priority(b, a));
    }

    #[test]
    fn the_port_matters_only_at_one_address(a in address(), b in address(), port: u16) {
        prop_assume!(a.ip() != b.ip());
        prop_assert_eq!(priority(a, b), priority(SocketAddr::new(a.ip(), port), b));
    }
}

// ---- the swarm that comes of it

/// Who is connected to whom, when everybody has `most` connections and chooses as the peer list
/// does: by priority, so that the pairs of the highest find each other, and some by lot.
fn swarm(nodes: &[SocketAddr], most: usize) -> Vec<Vec<usize>> {
    let mut pairs: Vec<_> = (0..nodes.len()).flat_map(|a| (0..a).map(move |b| (a, b))).collect();
    pairs.sort_by_cached_key(|(a, b)| std::cmp::Reverse(priority(nodes[*a], nodes[*b])));
    let mut links = vec![Vec::new(); nodes.len()];
    let mut connect = |pairs: &[(usize, usize)], most| {
        for &(a, b) in pairs {
            if links[a].len() < most && links[b].len() < most && !links[a].contains(&b) {
                links[a].push(b);
                links[b].push(a);
            }
        }
    };
    connect(&pairs, most - most / BY_LOT);
    pairs.shuffle(&mut ChaCha8Rng::seed_from_u64(1));
    connect(&pairs, most);
    links
}

/// The most hops from `start` to any node; `None` if one cannot be reached.
fn hops(links: &[Vec<usize>], start: usize) -> Option<u32> {
    let mut at = vec![None; links.len()];
    let mut queue = VecDeque::from([start]);
    at[start] = Some(0);
    while let Some(node) = queue.pop_front() {
        for &next in &links[node] {
            if at[next].is_none() {
                at[next] = at[node].map(|hops: u32| hops + 1);
                queue.push_back(next);
            }
        }
    }
    at.into_iter().collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// The longest way through the swarm; `None` if it is in parts.
fn diameter(links: &[Vec<usize>]) -> Option<u32> {
    let hops: Option<Vec<_>> = (0..links.len()).map(|start| hops(links, start)).collect();
    hops?.into_iter().max()
}

/// How slowly what one knows spreads over all, from 0 (at once) to 1 (never, the swarm is in parts):
/// the second greatest eigenvalue of a random walk. In a random graph of `d` links a node it is
/// 2 / √d.
fn slowness(links: &[Vec<usize>]) -> f64 {
    let degree = |node: usize| links[node].len() as f64;
    let all: f64 = (0..links.len()).map(degree).sum();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut mass: Vec<f64> = links.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut shrinks = 0.0;
    for _ in 0..200 {
        // What does not change at all is left out.
        let mean = (0..mass.len()).map(|n| degree(n) * mass[n]).sum::<f64>() / all;
        mass.iter_mut().for_each(|m| *m -= mean);
        let around = |n: usize| links[n].iter().map(|&l| mass[l]).sum::<f64>() / degree(n);
        // Half stays where it is, so that what swings to and fro dies out.
        let next: Vec<f64> = (0..mass.len()).map(|n| (mass[n] + around(n)) / 2.0).collect();
        let size = |mass: &[f64]| {
            (0..mass.len()).map(|n| degree(n) * mass[n] * mass[n]).sum::<f64>().sqrt()
        };
        let sized = size(&next);
        shrinks = sized / size(&mass);
        mass = next.into_iter().map(|m| m / sized).collect();
    }
    2.0 * shrinks - 1.0
}

#[track_caller]
fn assert_spreads(nodes: &[SocketAddr], most: usize, longest: u32, slowest: f64) {
    let links = swarm(nodes, most);
    let fewest = links.iter().map(Vec::len).min().unwrap();
    assert!(fewest >= most * 4 / 5, "somebody found only {fewest}");
    let (diameter, slowness) = (diameter(&links), slowness(&links));
    assert!(diameter.is_some_and(|d| d <= longest), "{diameter:?}");
    assert!(slowness < slowest, "{slowness}");
}

fn at_random(count: usize, seed: u64) -> Vec<SocketAddr> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| SocketAddr::from((rng.random::<[u8; 4]>(), 6881))).collect()
}

#[test]
fn a_thousand_nodes_anywhere_are_connected_like_a_random_graph() {
    assert_spreads(&at_random(1_000, 1), 50, 3, 0.6);
}

#[test]
fn nodes_in_few_networks_are_connected_all_the_same() {
    let in_two_networks = |n: u16| {
        let [high, low] = n.to_be_bytes();
        SocketAddr::from(([198, 18 + (n % 2) as u8, high, low], 6881))
    };
    let nodes: Vec<_> = (0..500).map(in_two_networks).collect();
    assert_spreads(&nodes, 30, 3, 0.75);
}

#[test]
fn nodes_on_one_address_are_connected_like_a_random_graph() {
    let nodes: Vec<_> =
        (10_000..10_300).map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect();
    assert_spreads(&nodes, 30, 3, 0.65);
}

#[test]
fn nodes_on_loopback_addresses_of_their_own_are_connected() {
    for count in [100u16, 1_000] {
        let node = |n: u16| {
            let [high, low] = n.to_be_bytes();
            SocketAddr::from(([127, high, low, 1], 6881))
        };
        let nodes: Vec<_> = (0..count).map(node).collect();
        assert_spreads(&nodes, 50, 3, 0.75);
    }
}
