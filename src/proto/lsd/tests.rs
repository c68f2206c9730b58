use proptest::prelude::*;

use super::*;

const MINUTE: u64 = 60;

fn at(secs: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(secs)
}

fn hash(n: u16) -> InfoHash {
    let mut bytes = [0; 20];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    InfoHash::new(bytes)
}

fn hashes(range: std::ops::Range<u16>) -> BTreeSet<InfoHash> {
    range.map(hash).collect()
}

fn lsd(range: std::ops::Range<u16>) -> Lsd {
    let mut lsd = Lsd::new(6881, 1);
    lsd.set_torrents(&hashes(range), at(0));
    lsd
}

fn from(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 77, 0, host], 6771))
}

/// What somebody at `from` announces of torrent 0.
fn hears(lsd: &mut Lsd, from: SocketAddr, port: u16, cookie: &str, secs: u64) -> usize {
    let cookie = Some(cookie.as_bytes().to_vec());
    let message = Message { port, torrents: vec![hash(0)], cookie };
    lsd.handle_datagram(&message.encode(Group::V4), from, at(secs)).len()
}

/// Everything that is sent up to `end`: when, and which torrents.
fn run(lsd: &mut Lsd, mut now: Timestamp, end: Timestamp) -> Vec<(Timestamp, Vec<InfoHash>)> {
    let mut sent = Vec::new();
    while now <= end {
        sent.extend(lsd.poll_transmit(now).map(|message| (now, message.torrents)));
        assert!(lsd.poll_timeout() > now);
        now = lsd.poll_timeout();
    }
    sent
}

#[test]
fn a_torrent_is_announced_at_once_and_then_every_five_minutes() {
    let sent = run(&mut lsd(0..1), at(0), at(3_600));
    assert_eq!(sent[0], (at(0), vec![hash(0)]));
    for pair in sent.windows(2) {
        let gap = pair[1].0.since(pair[0].0);
        assert!(gap <= INTERVAL && gap >= INTERVAL - Duration::from_secs(JITTER_SECS), "{gap:?}");
    }
    assert!((12..=14).contains(&sent.len()), "{}", sent.len());
}

#[test]
fn many_torrents_share_datagrams_a_second_apart() {
    let sent = run(&mut lsd(0..60), at(0), at(10));
    let counts: Vec<_> = sent.iter().map(|(now, torrents)| (*now, torrents.len())).collect();
    assert_eq!(counts, [(at(0), 25), (at(1), 25), (at(2), 10)]);
    let all: BTreeSet<_> = sent.into_iter().flat_map(|(_, torrents)| torrents).collect();
    assert_eq!(all, hashes(0..60));
}

#[test]
fn without_torrents_nothing_is_sent() {
    let mut lsd = lsd(0..0);
    assert_eq!(lsd.poll_transmit(at(0)), None);
    assert_eq!(lsd.poll_timeout(), Timestamp::FAR_FUTURE);
}

#[test]
fn a_torrent_that_comes_back_is_not_announced_twice_within_a_minute() {
    let mut lsd = lsd(0..1);
    assert!(lsd.poll_transmit(at(0)).is_some());
    lsd.set_torrents(&hashes(0..0), at(10));
    lsd.set_torrents(&hashes(0..1), at(20));
    assert_eq!(lsd.poll_transmit(at(59)), None);
    assert_eq!(lsd.poll_timeout(), at(60));
    assert!(lsd.poll_transmit(at(60)).is_some());
}

#[test]
fn a_change_of_the_network_is_announced_but_not_twice_within_a_minute() {
    let mut lsd = lsd(0..1);
    assert!(lsd.poll_transmit(at(0)).is_some());
    lsd.network_changed();
    assert_eq!(lsd.poll_timeout(), at(60));
    assert!(lsd.poll_transmit(at(100)).is_some());
    lsd.network_changed();
    assert_eq!(lsd.poll_timeout(), at(160));
}

#[test]
fn a_neighbour_is_found_by_its_address_and_its_port() {
    let mut lsd = lsd(0..3);
    let torrents = vec![hash(2), hash(7), hash(0)];
    let message = Message { port: 7_000, torrents, cookie: None };
    let peer = SocketAddr::from(([10, 77, 0, 9], 7_000));
    let found = lsd.handle_datagram(&message.encode(Group::V4), from(9), at(0));
    assert_eq!(found, [(hash(2), peer), (hash(0), peer)]);
}

#[test]
fn a_link_local_neighbour_keeps_its_interface() {
    let mut lsd = lsd(0..1);
    let message = Message { port: 7_000, torrents: vec![hash(0)], cookie: None };
    let addr = |port| std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), port, 0, 3).into();
    let found = lsd.handle_datagram(&message.encode(Group::V6), addr(6771), at(0));
    assert_eq!(found, [(hash(0), addr(7_000))]);
}

#[test]
fn our_own_announce_is_not_heard() {
    let mut lsd = lsd(0..1);
    let own = lsd.poll_transmit(at(0)).unwrap();
    assert_eq!(lsd.handle_datagram(&own.encode(Group::V4), from(1), at(0)), []);
    let other = Lsd::new(6881, 2);
    assert_ne!(other.cookie, lsd.cookie);
}

#[test]
fn only_local_addresses_are_believed() {
    for (source, believed) in [
        ("10.77.0.1", true),
        ("127.0.0.1", true),
        ("[::1]", true),
        ("[fe80::1]", true),
        ("[fd00::1]", true),
        ("[::ffff:10.77.0.1]", true),
        ("192.0.2.1", false),
        ("[2001:db8::1]", false),
        ("[::ffff:192.0.2.1]", false),
        ("0.0.0.0", false),
    ] {
        let source = format!("{source}:6771").parse().unwrap();
        assert_eq!(hears(&mut lsd(0..1), source, 1, "x", 0) == 1, believed, "{source}");
    }
}

#[test]
fn who_says_it_again_is_heard_once_until_it_is_forgotten() {
    let mut lsd = lsd(0..1);
    assert_eq!(hears(&mut lsd, from(1), 1, "x", 0), 1);
    assert_eq!(hears(&mut lsd, from(1), 1, "x", 3 * MINUTE), 0);
    assert_eq!(hears(&mut lsd, from(1), 1, "x", 4 * MINUTE), 1);
}

#[test]
fn a_client_with_two_addresses_counts_once() {
    let mut lsd = lsd(0..1);
    assert_eq!(hears(&mut lsd, from(1), 1, "x", 0), 1);
    assert_eq!(hears(&mut lsd, from(2), 1, "x", 1), 0, "the same cookie and port at once");
    assert_eq!(hears(&mut lsd, from(3), 1, "y", 1), 1, "another cookie");
    assert_eq!(hears(&mut lsd, from(2), 1, "x", 5), 1, "later it is believed");
}

#[test]
fn one_address_has_eight_peers() {
    let mut lsd = lsd(0..1);
    let heard: usize = (1..=100).map(|port| hears(&mut lsd, from(1), port, "", 0)).sum();
    assert_eq!(heard, MAX_PER_ADDRESS);
    assert_eq!(hears(&mut lsd, from(2), 1, "x", 0), 1);
}

#[test]
fn whoever_forges_addresses_tells_of_a_hundred_peers_in_four_minutes() {
    let mut lsd = lsd(0..1);
    let forge = |lsd: &mut Lsd, secs| -> usize {
        let all = (0..4u16).flat_map(|port| (0..=255u8).map(move |host| (host, port)));
        all.map(|(host, port)| hears(lsd, from(host), port + 1, &format!("{host}"), secs)).sum()
    };
    assert_eq!(forge(&mut lsd, 0), MAX_PEERS);
    assert_eq!(forge(&mut lsd, 3 * MINUTE), 0);
    assert_eq!(forge(&mut lsd, 4 * MINUTE), MAX_PEERS);
}

#[test]
fn a_flood_is_read_slowly() {
    let (mut lsd, mut now, mut read) = (lsd(0..0), at(1), 0);
    while now < at(11) && read < 20_000 {
        lsd.handle_datagram(b"", from(1), now);
        now = now.max(lsd.receive_at());
        read += 1;
    }
    assert!((10_000..=10_300).contains(&read), "{read}");
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut lsd = lsd(0..0);
    for n in 0..1_000 {
        let now = at(2 * u64::from(n));
        lsd.set_torrents(&hashes(n..n + 1), now);
        assert!(lsd.poll_transmit(now).is_some());
    }
    assert!(lsd.gone.len() <= 31, "{}", lsd.gone.len());
}

proptest! {
    /// Whatever comes and goes: no torrent twice a minute, no datagram twice a second, no more than
    /// fit, none that are not there.
    #[test]
    fn announces_keep_their_distance(
        steps in proptest::collection::vec((0u64..90, 0u16..40, 0u16..40, any::<bool>()), 1..60),
        seed: u64,
    ) {
        let mut lsd = Lsd::new(6881, seed);
        let (mut now, mut last, mut last_sent) = (at(0), BTreeMap::new(), None);
        for (wait, start, count, changed) in steps {
            now = now + Duration::from_secs(wait);
            let there = hashes(start..start + count);
            lsd.set_torrents(&there, now);
            if changed {
                lsd.network_changed();
            }
            let Some(message) = lsd.poll_transmit(now) else { continue };
            prop_assert!(message.encode(Group::V6).len() <= MAX_SENT);
            let sent = last_sent.replace(now);
            prop_assert!(sent.is_none_or(|sent| now.since(sent) >= PACE));
            for hash in message.torrents {
                prop_assert!(there.contains(&hash));
                let before = last.insert(hash, now);
                prop_assert!(before.is_none_or(|before| now.since(before) >= MIN_INTERVAL));
            }
        }
    }

    #[test]
    fn what_is_believed_is_bounded(
        datagrams in proptest::collection::vec(
            (any::<[u8; 4]>(), 0u16..20, proptest::collection::vec(0u16..4, 1..30)),
            1..300,
        ),
    ) {
        let mut lsd = lsd(0..2);
        let mut told: BTreeMap<InfoHash, BTreeSet<SocketAddr>> = BTreeMap::new();
        for (ip, port, torrents) in datagrams {
            let torrents = torrents.into_iter().map(hash).collect();
            let message = Message { port, torrents, cookie: None };
            let from = SocketAddr::from(([10, 77, ip[2] % 8, ip[3] % 8], 1));
            for (hash, peer) in lsd.handle_datagram(&message.encode(Group::V4), from, at(0)) {
                prop_assert!(peer.ip() == from.ip() && peer.port() == port && port != 0);
                prop_assert!(told.entry(hash).or_default().insert(peer), "told twice");
            }
        }
        prop_assert!(told.keys().all(|told| *told == hash(0) || *told == hash(1)));
        prop_assert!(told.values().all(|peers| peers.len() <= MAX_PEERS));
    }
}
