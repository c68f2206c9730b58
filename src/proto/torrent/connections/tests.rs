//! The policy in virtual time, on one machine whose peers are played by hand.

use std::collections::BTreeMap;

use super::*;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::BLOCK_LEN;
use crate::proto::torrent::lone::{Lone, MINUTE};
use crate::proto::wire::Message;
use crate::proto::wire::extended::{self, ExtendedHandshake};

/// Who we are; two peers say so.
const OURS: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 6881);

/// Somebody in a network of its own.
fn stranger(n: usize) -> SocketAddr {
    let n = n as u16;
    let [high, low] = n.to_be_bytes();
    SocketAddr::from(([198, 18 + (n % 2) as u8, high, low], 40_000 + n))
}

fn lone() -> Lone {
    Lone::new(10, 16, |_| true)
}

impl Lone {
    /// A connection with a peer at `addr`, unless it is refused.
    fn meet(&mut self, addr: SocketAddr, outgoing: bool) -> Option<PeerKey> {
        if !outgoing && !self.machine.accepts(addr, self.now) {
            return None;
        }
        self.last_key += 1;
        let key = PeerKey(self.last_key);
        let session = PeerSession::new(addr, outgoing, true, true, self.now);
        self.machine.peer_connected(key, session, self.now);
        Some(key)
    }

    /// Others come in until nobody is let in any more.
    fn fill(&mut self) -> BTreeMap<PeerKey, SocketAddr> {
        let mut inside = BTreeMap::new();
        for n in 0.. {
            let Some(key) = self.meet(stranger(n), false) else { break };
            inside.insert(key, stranger(n));
        }
        inside
    }

    fn pass(&mut self, time: Duration) {
        self.within(time, |lone| {
            let keys: Vec<_> = lone.machine.peers.keys().copied().collect();
            keys.into_iter().for_each(|key| lone.say(key, Message::KeepAlive));
            false
        });
    }

    fn closed(&self) -> Vec<PeerKey> {
        let closed = |o: &Output| match o {
            Output::Disconnect(key, _) => Some(*key),
            _ => None,
        };
        self.others.iter().filter_map(closed).collect()
    }

    /// Peers tell us our address.
    fn learn_who_we_are(&mut self) {
        for n in 0..2 {
            let voter = SocketAddr::from(([203, 0, 113, 1 + n], 6881));
            let key = self.meet(voter, true).unwrap();
            let told =
                ExtendedHandshake { yourip: Some(OURS.ip()), ..ExtendedHandshake::ours(false) };
            self.say(key, Message::Extended(extended::HANDSHAKE_ID, told.encode()));
            self.gone(key);
        }
    }

    fn priority(&self, addr: SocketAddr) -> u32 {
        self.machine.ourselves().priority(addr)
    }

    /// A stranger whose priority is higher (or lower) than those of all `inside`.
    fn outsider(&self, inside: &BTreeMap<PeerKey, SocketAddr>, higher: bool) -> SocketAddr {
        let (low, high) = inside
            .values()
            .map(|a| self.priority(*a))
            .fold((u32::MAX, 0), |(low, high), p| (low.min(p), high.max(p)));
        let fits = |a: &SocketAddr| match higher {
            true => self.priority(*a) > high,
            false => self.priority(*a) < low,
        };
        (1_000..9_000).map(stranger).find(fits).unwrap()
    }
}

#[test]
fn a_newcomer_of_a_higher_priority_takes_the_place_of_the_lowest_that_is_idle() {
    let mut lone = lone();
    lone.learn_who_we_are();
    let inside = lone.fill();
    let lowest = *inside.iter().min_by_key(|(_, addr)| lone.priority(**addr)).unwrap().0;
    let newcomer = lone.outsider(&inside, true);
    lone.pass(IDLE_AFTER / 2);
    assert_eq!(lone.meet(newcomer, false), None, "nobody has been idle for long");
    lone.pass(IDLE_AFTER);
    assert!(lone.meet(newcomer, false).is_some());
    lone.step();
    assert_eq!(lone.closed(), [lowest]);
    assert_eq!(lone.machine.peers.len(), inside.len());
}

#[test]
fn a_newcomer_of_a_lower_priority_waits() {
    let mut lone = lone();
    lone.learn_who_we_are();
    let inside = lone.fill();
    let newcomer = lone.outsider(&inside, false);
    lone.pass(IDLE_AFTER + IDLE_AFTER / 2);
    assert_eq!(lone.meet(newcomer, false), None);
    assert_eq!(lone.closed(), []);
}

#[test]
fn places_change_hands_only_now_and_then() {
    let mut lone = lone();
    lone.learn_who_we_are();
    let inside = lone.fill();
    lone.pass(IDLE_AFTER + IDLE_AFTER / 2);
    let (began, mut taken) = (lone.now, 0);
    for n in 1_000..1_300 {
        taken += u32::from(lone.meet(stranger(n), false).is_some());
        lone.pass(Duration::from_millis(100));
    }
    let most = lone.now.since(began).as_secs() / REPLACEMENT.as_secs() + 1;
    assert!(taken >= 1 && u64::from(taken) <= most, "{taken} of at most {most}");
    assert_eq!(lone.machine.peers.len(), inside.len());
}

#[test]
fn a_peer_that_gives_us_data_keeps_its_place_whatever_its_priority() {
    let mut lone = lone();
    lone.learn_who_we_are();
    let inside = lone.fill();
    let lowest = *inside.iter().min_by_key(|(_, addr)| lone.priority(**addr)).unwrap().0;
    let newcomer = lone.outsider(&inside, true);
    lone.say(lowest, Message::HaveAll);
    lone.say(lowest, Message::Unchoke);
    lone.pass(IDLE_AFTER);
    lone.give_all(lowest);
    lone.pass(IDLE_AFTER / 2);
    assert!(lone.meet(newcomer, false).is_some());
    lone.step();
    assert!(!lone.closed().contains(&lowest));
}

#[test]
fn a_peer_that_we_give_data_keeps_its_place() {
    let mut lone = lone();
    lone.learn_who_we_are();
    let inside = lone.fill();
    let lowest = *inside.iter().min_by_key(|(_, addr)| lone.priority(**addr)).unwrap().0;
    let newcomer = lone.outsider(&inside, true);
    lone.pass(IDLE_AFTER + IDLE_AFTER / 2);
    let raw = crate::proto::wire::RawBlock { piece: 0, begin: 0, length: BLOCK_LEN };
    lone.machine.uploaded(lowest, raw, true, lone.now);
    lone.pass(Duration::from_secs(1));
    assert!(lone.meet(newcomer, false).is_some());
    lone.step();
    assert!(!lone.closed().contains(&lowest));
}

#[test]
fn the_only_holder_of_a_piece_keeps_its_place() {
    let mut lone = lone();
    lone.learn_who_we_are();
    let inside = lone.fill();
    let lowest = *inside.iter().min_by_key(|(_, addr)| lone.priority(**addr)).unwrap().0;
    let newcomer = lone.outsider(&inside, true);
    lone.say(lowest, Message::HaveNone);
    lone.say(lowest, Message::Have(3));
    lone.pass(IDLE_AFTER + IDLE_AFTER / 2);
    assert_eq!(lone.meet(newcomer, false), None);
}

#[test]
fn a_peer_that_a_person_named_keeps_its_place() {
    let mut lone = lone();
    lone.learn_who_we_are();
    let named = SocketAddr::from(([203, 0, 113, 77], 6881));
    lone.machine.peers_found(&[named], PeerSource::Manual);
    let key = lone.meet(named, true).unwrap();
    let inside = lone.fill();
    for n in 1_000..1_200 {
        lone.meet(stranger(n), false);
        lone.pass(Duration::from_secs(1));
    }
    lone.step();
    assert!(!lone.closed().is_empty() && !lone.closed().contains(&key));
    lone.machine.set_connection_limit(1, lone.now);
    assert_eq!(lone.machine.peers.keys().collect::<Vec<_>>(), [&key]);
    assert!(inside.len() > 30);
}

#[test]
fn while_our_address_is_unknown_nobody_is_outranked() {
    let mut lone = lone();
    lone.fill();
    lone.pass(IDLE_AFTER + IDLE_AFTER / 2);
    assert!((1_000..1_100).all(|n| lone.meet(stranger(n), false).is_none()));
}

#[test]
fn who_was_refused_finds_a_place_once_somebody_was_of_no_use_for_long() {
    // A seeder does not look for others, so its places would never change hands.
    let mut lone = lone();
    let info = lone.info.clone();
    let all = crate::proto::bitfield::Bitfield::full(info.geometry.piece_count());
    lone.machine.activate(info, all.clone(), &all, lone.now);
    let inside = lone.fill();
    assert_eq!(inside.len(), MAX_PEERS - MAX_PEERS / CHOSEN_SHARE);
    let newcomer = stranger(5_000);
    lone.pass(USELESS_AFTER / 2);
    assert_eq!(lone.meet(newcomer, false), None);
    let came = lone.within(USELESS_AFTER, |lone| lone.meet(newcomer, false).is_some());
    assert!(came);
    lone.step();
    assert_eq!(lone.closed().len(), 1);
}

#[test]
fn nobody_makes_room_when_nobody_waits() {
    let mut lone = lone();
    let all = crate::proto::bitfield::Bitfield::full(10);
    lone.machine.activate(lone.info.clone(), all.clone(), &all, lone.now);
    lone.fill();
    // The one that found no place.
    lone.pass(USELESS_AFTER + TURNOVER);
    lone.others.clear();
    lone.pass(10 * MINUTE);
    assert_eq!(lone.closed(), []);
}

#[test]
fn one_address_cannot_keep_all_places() {
    let mut lone = lone();
    let many = |n: u16| SocketAddr::from(([203, 0, 113, 9], 10_000 + n));
    let crowd = (0..100).filter(|n| lone.meet(many(*n), false).is_some()).count();
    assert_eq!(crowd, MAX_PEERS - MAX_PEERS / CHOSEN_SHARE, "nobody else wants the places");
    let others = (0..100).filter(|n| lone.meet(stranger(*n), false).is_some()).count();
    assert_eq!(others, crowd - MAX_PER_SITE);
    assert_eq!(lone.machine.peers.len(), crowd);
    assert!((0..100).all(|n| lone.meet(many(n), false).is_none()), "it does not win them back");
}

#[test]
fn of_a_crowd_at_one_address_the_one_that_is_of_use_stays() {
    let mut lone = lone();
    let many = |n: u16| SocketAddr::from(([203, 0, 113, 9], 10_000 + n));
    let useful = lone.meet(many(0), false).unwrap();
    for n in 1..100 {
        lone.meet(many(n), false);
    }
    lone.say(useful, Message::HaveAll);
    lone.say(useful, Message::Unchoke);
    lone.step();
    lone.give_all(useful);
    lone.pass(Duration::from_secs(1));
    for n in 0..100 {
        lone.meet(stranger(n), false);
    }
    lone.step();
    assert!(!lone.closed().is_empty() && !lone.closed().contains(&useful));
}

#[test]
fn with_a_lower_limit_the_least_useful_connections_go_at_once() {
    let mut lone = lone();
    let inside = lone.fill();
    let useful = *inside.keys().nth(7).unwrap();
    lone.say(useful, Message::HaveAll);
    lone.say(useful, Message::Unchoke);
    lone.step();
    lone.give_all(useful);
    lone.pass(Duration::from_secs(1));
    lone.machine.set_connection_limit(5, lone.now);
    lone.step();
    assert_eq!(lone.machine.peers.len(), 5);
    assert!(lone.machine.peers.contains_key(&useful));
    assert_eq!(lone.closed().len(), inside.len() - 5);
    assert_eq!(lone.meet(stranger(999), false), None);
}

#[test]
fn attempts_are_bounded_as_connections_are() {
    let mut lone = lone();
    lone.machine.set_connection_limit(7, lone.now);
    let known: Vec<_> = (1..=20).map(|n| SocketAddr::from(([203, 0, 113, n], 6881))).collect();
    lone.machine.peers_found(&known, PeerSource::Tracker);
    lone.pass(Duration::from_secs(5));
    let tried = lone.others.iter().filter(|o| matches!(o, Output::Connect(_))).count();
    assert_eq!(tried, 5, "six out of ten");
}

/// Others that may be connected to, each in a network of its own.
fn others(count: u8) -> Vec<SocketAddr> {
    (0..count).map(|n| SocketAddr::from(([203, 0, n, 1], 6881))).collect()
}

/// Connects to whomever the machine wants to; how many that are in all.
fn oblige(lone: &mut Lone) -> usize {
    lone.step();
    for output in std::mem::take(&mut lone.others) {
        if let Output::Connect(addr) = output {
            lone.meet(addr, true);
        }
    }
    lone.machine.peers.values().filter(|peer| peer.outgoing).count()
}

#[test]
fn who_has_enough_connections_leaves_the_rest_to_those_who_come() {
    let mut lone = lone();
    lone.machine.peers_found(&others(200), PeerSource::Tracker);
    for _ in 0..60 {
        oblige(&mut lone);
        lone.pass(Duration::from_secs(1));
    }
    assert_eq!(oblige(&mut lone), 30);
    assert!((0..10).all(|n| lone.meet(stranger(n), false).is_some()));
}

#[test]
fn when_others_have_come_there_is_still_room_for_some_that_we_choose() {
    let mut lone = lone();
    assert_eq!(lone.fill().len(), 40);
    lone.machine.peers_found(&others(200), PeerSource::Tracker);
    assert_eq!(oblige(&mut lone), 10);
}

#[test]
fn when_enough_are_connected_but_of_no_use_others_are_looked_for() {
    let mut lone = lone();
    lone.machine.peers_found(&others(200), PeerSource::Tracker);
    let before = oblige(&mut lone);
    lone.pass(USELESS_AFTER);
    let found = lone.within(2 * TURNOVER, |lone| {
        let keys: Vec<_> = lone.machine.peers.keys().copied().collect();
        keys.into_iter().for_each(|key| lone.say(key, Message::KeepAlive));
        lone.others.iter().any(|output| matches!(output, Output::Connect(_)))
    });
    assert!(before == 30 && found);
}

#[test]
fn while_readers_wait_those_who_only_take_up_places_make_room_soon() {
    for reads in [false, true] {
        let mut lone = lone();
        lone.machine.peers_found(&others(200), PeerSource::Tracker);
        assert_eq!(oblige(&mut lone), 30);
        if reads {
            lone.read(0);
        }
        let mut made_room = 0;
        let end = lone.now + STARVED_AFTER + 11 * STARVED_TURNOVER;
        while lone.now < end {
            lone.pass(Duration::from_secs(1));
            lone.step();
            made_room += lone.closed().len();
            oblige(&mut lone);
        }
        assert!(if reads { made_room >= 10 } else { made_room == 0 }, "{made_room} made room");
        assert!((28..=30).contains(&lone.machine.peers.len()));
    }
}

#[test]
fn who_does_not_give_the_metadata_makes_room_soon_though_a_person_named_it() {
    for source in [PeerSource::Tracker, PeerSource::Manual] {
        let mut lone = lone();
        lone.machine = Torrent::new(lone.info.info_hash, lone.machine.options.clone(), 1);
        lone.machine.peers_found(&others(200), source);
        oblige(&mut lone);
        let before = lone.machine.peers.len();
        let mut made_room = 0;
        let end = lone.now + IGNORANT_AFTER + 12 * IGNORANT_TURNOVER;
        while lone.now < end {
            lone.pass(Duration::from_millis(100));
            lone.step();
            made_room += lone.closed().len();
            oblige(&mut lone);
        }
        assert!((10..=12).contains(&made_room), "{made_room} of {before} made room");
    }
}

#[test]
fn of_two_connections_that_crossed_the_greater_id_decides() {
    let mut lone = lone();
    let ours = lone.meet(stranger(1), true).unwrap();
    let second =
        |greater, lone: &Lone| lone.machine.second_connection(ours, false, greater, lone.now);
    assert_eq!(second(true, &lone), Second::Refused);
    assert_eq!(second(false, &lone), Second::Replaces);
}

#[test]
fn a_second_connection_from_the_same_end_waits_until_the_first_has_proved_alive() {
    let mut lone = lone();
    let first = lone.meet(stranger(1), false).unwrap();
    for greater in [true, false] {
        let second = lone.machine.second_connection(first, false, greater, lone.now);
        assert_eq!(second, Second::Waits);
    }
}

#[test]
fn connections_do_not_cross_after_a_while() {
    let mut lone = lone();
    let first = lone.meet(stranger(1), true).unwrap();
    lone.pass(CROSSING);
    let second = lone.machine.second_connection(first, false, false, lone.now);
    assert_eq!(second, Second::Waits);
}

#[test]
fn a_peer_that_we_reach_though_it_came_to_us_is_known_by_where_it_listens() {
    let mut lone = lone();
    let listens = SocketAddr::new(stranger(1).ip(), 6881);
    lone.machine.peers_found(&[listens], PeerSource::Tracker);
    lone.step();
    let first = lone.meet(stranger(1), false).unwrap();
    lone.machine.connected_already(listens, first, lone.now);
    lone.others.clear();
    lone.pass(10 * MINUTE);
    assert!(lone.others.iter().all(|o| !matches!(o, Output::Connect(_))), "tried again");
}

#[test]
fn who_says_where_it_listens_is_not_connected_to() {
    let mut lone = lone();
    let key = lone.meet(stranger(1), false).unwrap();
    let said = ExtendedHandshake { listen_port: Some(6881), ..ExtendedHandshake::ours(false) };
    lone.say(key, Message::Extended(extended::HANDSHAKE_ID, said.encode()));
    let listens = SocketAddr::new(stranger(1).ip(), 6881);
    lone.machine.peers_found(&[listens], PeerSource::Tracker);
    lone.pass(MINUTE);
    let connects = |o: &Output| matches!(o, Output::Connect(addr) if *addr == listens);
    assert!(!lone.others.iter().any(connects));
    lone.gone(key);
    assert!(lone.within(MINUTE, |lone| lone.others.iter().any(connects)), "once it is gone it is");
}

#[test]
fn for_one_place_one_is_tried_and_not_fifty() {
    let mut lone = lone();
    lone.pass(MINUTE);
    for n in 0..ENOUGH_OF_TEN * MAX_PEERS / 10 - 1 {
        lone.meet(stranger(n), true);
    }
    let known: Vec<_> = (100..300).map(stranger).collect();
    lone.machine.peers_found(&known, PeerSource::Tracker);
    lone.others.clear();
    lone.step();
    let tried = lone.others.iter().filter(|o| matches!(o, Output::Connect(_))).count();
    assert_eq!(tried, 1);
}

/// How many connections the machine of `lone` opens within `time` when each attempt fails at once.
fn attempts_within(lone: &mut Lone, time: Duration) -> usize {
    let mut attempts = 0;
    lone.within(time, |lone| {
        let opened = |o: &Output| match o {
            Output::Connect(addr) => Some(*addr),
            _ => None,
        };
        let addrs: Vec<_> = lone.others.drain(..).filter_map(|o| opened(&o)).collect();
        attempts += addrs.len();
        for addr in addrs {
            lone.machine.connect_failed(addr, false, lone.now);
        }
        false
    });
    attempts
}

#[test]
fn attempts_to_connect_are_paced_and_those_of_a_complete_torrent_much_more() {
    let strangers: Vec<_> = (0..1_500).map(stranger).collect();
    let ten = Duration::from_secs(10);
    let mut lone = self::lone();
    lone.machine.peers_found(&strangers, PeerSource::Tracker);
    let incomplete = attempts_within(&mut lone, ten);
    assert!((300..=400).contains(&incomplete), "{incomplete}");

    let mut lone = Lone::new(10, 16, |_| true);
    let all = Bitfield::full(10);
    lone.machine.activate(lone.info.clone(), all.clone(), &all, lone.now);
    lone.machine.peers_found(&strangers, PeerSource::Tracker);
    let complete = attempts_within(&mut lone, ten);
    assert!((10..=21).contains(&complete), "{complete}");
}

#[test]
fn who_is_alone_sleeps_until_somebody_may_be_tried() {
    let mut lone = lone();
    lone.within(Duration::from_secs(3), |_| false);
    let sleeps = |lone: &Lone| lone.machine.poll_timeout().since(lone.now);
    assert!(sleeps(&lone) > Duration::from_secs(5), "{:?}", sleeps(&lone));
    let peer = stranger(1);
    lone.machine.peers_found(&[peer], PeerSource::Tracker);
    lone.step();
    assert!(lone.others.iter().any(|o| matches!(o, Output::Connect(addr) if *addr == peer)));
    lone.machine.connect_failed(peer, false, lone.now);
    lone.others.clear();
    let begin = lone.now;
    let tried = |lone: &mut Lone| lone.others.iter().any(|o| matches!(o, Output::Connect(_)));
    lone.within(MINUTE, tried);
    let after = lone.now.since(begin);
    assert!(after < Duration::from_secs(8), "tried again after {after:?}");
}

#[test]
fn who_waits_to_be_unchoked_keeps_its_turn_at_half_of_the_peers() {
    let mut lone = lone();
    lone.machine.peers_found(&others(200), PeerSource::Tracker);
    assert_eq!(oblige(&mut lone), 30);
    let first: Vec<_> = lone.machine.peers.keys().copied().collect();
    lone.read(0);
    let end = lone.now + STARVED_AFTER + 60 * STARVED_TURNOVER;
    while lone.now < end {
        lone.pass(Duration::from_secs(1));
        oblige(&mut lone);
    }
    let stayed = first.iter().filter(|key| lone.machine.peers.contains_key(key)).count();
    assert_eq!(stayed, first.len() / 2);
    // And those that were let go are not taken for dead.
    assert_eq!(lone.machine.list.len(), 200);
}
