//! The store against a map of everything, and each of its bounds.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use proptest::prelude::*;
use rand_chacha::rand_core::SeedableRng;

use super::*;

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(seconds)
}

fn hash(n: u32) -> InfoHash {
    InfoHash::of(&n.to_be_bytes())
}

/// The peer `n`, on a site of its own.
fn peer(n: u32) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from_bits(0xc000_0200 + n).into(), 1)
}

fn announced(peers: u32) -> PeerStore {
    let mut store = PeerStore::default();
    for n in 0..peers {
        store.announce(hash(0), peer(n), n % 2 == 0, &mut rng(), at(0)).unwrap();
    }
    store
}

#[test]
fn an_announce_counts_for_half_an_hour() {
    let mut store = announced(1);
    assert_eq!(store.peers(hash(0), false, false, 9, &mut rng(), at(1_799)), [peer(0)]);
    assert_eq!(store.peers(hash(0), false, false, 9, &mut rng(), at(1_800)), []);
    assert_eq!(store.counts(), (0, 0));
    assert!(store.sites.is_empty());
}

#[test]
fn announcing_again_counts_once_and_longer() {
    let mut store = announced(1);
    store.announce(hash(0), peer(0), false, &mut rng(), at(1_000)).unwrap();
    assert_eq!(store.counts(), (1, 1));
    assert_eq!(store.peers(hash(0), false, false, 9, &mut rng(), at(2_000)), [peer(0)]);
}

#[test]
fn peers_behind_one_address_are_kept_apart_and_the_oldest_go_when_there_are_many() {
    let mut store = PeerStore::default();
    let behind = |port: u16| SocketAddr::new(peer(0).ip(), port);
    for port in 1..=MAX_PORTS as u16 + 2 {
        let now = at(port.into());
        store.announce(hash(0), behind(port), port % 2 == 0, &mut rng(), now).unwrap();
    }
    let mut kept = store.peers(hash(0), false, false, 99, &mut rng(), at(20));
    kept.sort();
    assert_eq!(kept, (3..=MAX_PORTS as u16 + 2).map(behind).collect::<Vec<_>>());
    assert_eq!(store.counts(), (1, MAX_PORTS));
    assert_eq!(store.sites.values().sum::<u32>() as usize, MAX_PORTS);
}

#[test]
fn seeds_are_left_out_for_those_that_have_no_use_for_them() {
    let mut store = announced(10);
    let some = store.peers(hash(0), false, true, 99, &mut rng(), at(0));
    assert_eq!(some.len(), 5);
    assert!(some.iter().all(|p| !p.ip().to_string().ends_with(['0', '2', '4', '6', '8'])));
}

#[test]
fn an_answer_has_seeds_and_others() {
    let mut store = announced(100);
    let some = store.peers(hash(0), false, false, 20, &mut rng(), at(0));
    let seeds = some.iter().filter(|p| p.ip().to_string().ends_with(['0', '2', '4', '6', '8']));
    assert_eq!((some.len(), seeds.count()), (20, 10));
}

#[test]
fn peers_of_the_other_family_are_left_out() {
    let mut store = announced(1);
    let v6 = SocketAddr::new("2001:db8::1".parse().unwrap(), 1);
    store.announce(hash(0), v6, false, &mut rng(), at(0)).unwrap();
    assert_eq!(store.peers(hash(0), true, false, 9, &mut rng(), at(0)), [v6]);
    assert_eq!(store.peers(hash(0), false, false, 9, &mut rng(), at(0)), [peer(0)]);
}

#[test]
fn a_full_torrent_takes_newcomers_in_place_of_others() {
    let mut store = announced(MAX_PEERS as u32);
    store.announce(hash(0), peer(70_000), false, &mut rng(), at(1)).unwrap();
    assert_eq!(store.counts(), (1, MAX_PEERS));
    assert!(store.contains(hash(0), &peer(70_000)));
}

#[test]
fn a_full_store_refuses_other_torrents() {
    let mut store = PeerStore::default();
    for n in 0..MAX_TORRENTS as u32 {
        store.announce(hash(n), peer(n), false, &mut rng(), at(0)).unwrap();
    }
    let more = |store: &mut PeerStore, torrent, seconds| {
        store.announce(hash(torrent), peer(70_000), false, &mut rng(), at(seconds))
    };
    assert_eq!(more(&mut store, 70_000, 1), Err(StoreFull::Store));
    assert_eq!(more(&mut store, 3, 1), Ok(()));
    assert_eq!(more(&mut store, 70_000, 1_800), Ok(()));
}

#[test]
fn one_site_has_only_its_share() {
    let mut store = PeerStore::default();
    let host = |low: u128| SocketAddr::new(Ipv6Addr::from_bits(0x2001_0db8 << 96 | low).into(), 1);
    for n in 0..MAX_OF_SITE {
        store.announce(hash(n), host(u128::from(n)), false, &mut rng(), at(0)).unwrap();
    }
    let other = store.announce(hash(70_000), host(70_000), false, &mut rng(), at(0));
    assert_eq!(other, Err(StoreFull::Site));
    assert_eq!(store.announce(hash(5), host(5), true, &mut rng(), at(0)), Ok(()));
}

#[test]
fn filters_count_seeds_and_others_apart_and_forget_who_left() {
    let mut store = announced(200);
    let counts = |store: &mut PeerStore, seconds| {
        let (seeds, others) = store.blooms(hash(0), at(seconds)).unwrap();
        (seeds.estimate().round() as i32, others.estimate().round() as i32)
    };
    let (seeds, others) = counts(&mut store, 0);
    assert!((95..=105).contains(&seeds) && (95..=105).contains(&others), "{seeds} {others}");
    store.announce(hash(0), peer(1), true, &mut rng(), at(900)).unwrap();
    assert_eq!(counts(&mut store, 1_800), (1, 0));
    assert_eq!(store.blooms(hash(1), at(0)), None);
}

#[test]
fn a_sample_has_as_many_torrents_as_asked_for() {
    let mut store = PeerStore::default();
    for n in 0..100 {
        store.announce(hash(n), peer(n), false, &mut rng(), at(0)).unwrap();
    }
    let (sample, all) = store.sample(20, &mut rng(), at(0));
    assert_eq!((sample.len(), all), (20, 100));
    let mut rng = rng();
    let other = store.sample(20, &mut rng, at(0));
    assert_ne!(other, store.sample(20, &mut rng, at(0)));
    assert_eq!(store.sample(200, &mut rng, at(0)).0.len(), 100);
}

proptest! {
    /// The store is a map from torrent and address to seed, with an expiry.
    #[test]
    fn the_store_is_what_was_announced(
        steps in prop::collection::vec((0u32..4, 0u32..12, any::<bool>(), 0u64..900), 0..100),
    ) {
        let (mut store, mut model, mut now, mut rng) =
            (PeerStore::default(), BTreeMap::new(), 0, rng());
        for (torrent, who, seed, later) in steps {
            now += later;
            store.announce(hash(torrent), peer(who), seed, &mut rng, at(now)).unwrap();
            model.insert((torrent, who), (seed, now));
            model.retain(|_, (_, then)| now - *then < 1_800);
            for torrent in 0..4 {
                for no_seed in [false, true] {
                    let mut got = store.peers(hash(torrent), false, no_seed, 99, &mut rng, at(now));
                    got.sort();
                    let expected: Vec<_> = model
                        .iter()
                        .filter(|((t, _), (seed, _))| *t == torrent && !(*seed && no_seed))
                        .map(|((_, who), _)| peer(*who))
                        .collect();
                    prop_assert_eq!(got, expected);
                }
            }
            prop_assert_eq!(store.counts().1, model.len());
            prop_assert_eq!(store.sites.values().sum::<u32>() as usize, model.len());
        }
    }
}
