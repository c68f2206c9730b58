//! One machine, and peers that are played by hand.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::proto::bitfield::Bitfield;
use crate::proto::metainfo::Info;
use crate::proto::torrent::Output;
use crate::proto::torrent::lone::{Lone, MINUTE};
use crate::proto::torrent::tests::info;
use crate::proto::wire::extended::{self, ExtendedHandshake};

/// The number under which the peers want to be told of others.
const THEIRS: u8 = 7;

const SECOND: Duration = Duration::from_secs(1);

fn lone() -> Lone {
    Lone::new(10, 16, |_| true)
}

/// Where peer number `n` listens, in a network of its own.
fn home(n: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, n], 6881))
}

impl Lone {
    fn pex(&mut self, pex: bool) {
        self.machine.options.pex = pex;
    }

    /// A connection with peer number `n`.
    fn join(&mut self, n: u8, outgoing: bool) -> PeerKey {
        self.last_key += 1;
        let key = PeerKey(self.last_key);
        let port = if outgoing { 6881 } else { 50_000 + u16::from(n) };
        let session =
            PeerSession::new(SocketAddr::new(home(n).ip(), port), outgoing, true, true, self.now);
        self.machine.peer_connected(key, session, self.now);
        key
    }

    /// The peer's extended handshake.
    fn greets(&mut self, key: PeerKey, theirs: ExtendedHandshake) {
        self.say(key, Message::Extended(extended::HANDSHAKE_ID, theirs.encode()));
    }

    /// A peer that wants to be told.
    fn listener(&mut self, n: u8) -> PeerKey {
        let key = self.join(n, true);
        self.greets(key, ExtendedHandshake { ut_pex: Some(THEIRS), ..Default::default() });
        key
    }

    /// What `key` was told since it was last looked.
    fn told(&mut self, key: PeerKey) -> Vec<PexMessage> {
        self.step();
        let told = self.sent.iter().filter_map(|(to, message)| match message {
            Message::Extended(THEIRS, payload) if *to == key => PexMessage::parse(payload).ok(),
            _ => None,
        });
        let told = told.collect();
        self.sent.clear();
        told
    }

    /// Lets time pass, while nobody is silent for too long.
    fn later(&mut self, time: Duration) {
        self.within(time, |lone| {
            let keys: Vec<_> = lone.machine.peers.keys().copied().collect();
            keys.into_iter().for_each(|key| lone.say(key, Message::KeepAlive));
            false
        });
    }

    fn tells(&mut self, key: PeerKey, added: &[SocketAddr], flags: PexFlags) {
        let added = added.iter().map(|addr| (*addr, flags)).collect();
        let message = PexMessage { added, dropped: Vec::new() };
        self.say(key, Message::Extended(extended::UT_PEX_ID, message.encode()));
    }

    /// Whom the machine has tried to connect to.
    fn tried(&self) -> BTreeSet<SocketAddr> {
        let tried = self.others.iter().filter_map(|output| match output {
            Output::Connect(addr) => Some(*addr),
            _ => None,
        });
        tried.collect()
    }

    /// The last extended handshake that was sent to `key`.
    fn offered(&mut self, key: PeerKey) -> Option<u8> {
        self.step();
        let said = self.sent.iter().rev().find_map(|(to, message)| match message {
            Message::Extended(extended::HANDSHAKE_ID, payload) if *to == key => Some(payload),
            _ => None,
        });
        ExtendedHandshake::parse(said.unwrap()).unwrap().ut_pex
    }
}

fn only(told: Vec<PexMessage>) -> PexMessage {
    assert_eq!(told.len(), 1, "{told:?}");
    told.into_iter().next().unwrap()
}

#[test]
fn a_newcomer_is_told_at_once_where_the_others_listen_and_what_they_are() {
    let mut lone = lone();
    let seed = lone.join(1, true);
    lone.say(seed, Message::HaveAll);
    let came = lone.join(2, false);
    lone.greets(came, ExtendedHandshake { listen_port: Some(6881), ..Default::default() });
    let newcomer = lone.listener(3);
    lone.later(SECOND);
    let told = only(lone.told(newcomer));
    let seed = (home(1), PexFlags::UPLOAD_ONLY.with(PexFlags::REACHABLE));
    assert_eq!(told.added, [seed, (home(2), PexFlags(0))]);
    assert_eq!(told.dropped, []);
}

#[test]
fn who_does_not_say_where_it_listens_is_not_told_of() {
    let mut lone = lone();
    lone.join(1, false);
    let newcomer = lone.listener(2);
    lone.later(2 * MINUTE);
    assert_eq!(lone.told(newcomer), []);
}

#[test]
fn what_has_changed_is_told_a_minute_later() {
    let mut lone = lone();
    let first = lone.join(1, true);
    let listener = lone.listener(2);
    lone.later(SECOND);
    assert_eq!(only(lone.told(listener)).added.len(), 1);
    lone.join(3, true);
    lone.gone(first);
    lone.later(MINUTE - 2 * SECOND);
    assert_eq!(lone.told(listener), []);
    lone.later(3 * SECOND);
    let told = only(lone.told(listener));
    assert_eq!((told.added, told.dropped), (vec![(home(3), PexFlags::REACHABLE)], vec![home(1)]));
    lone.later(10 * MINUTE);
    assert_eq!(lone.told(listener), [], "nothing has changed");
}

#[test]
fn the_first_that_comes_after_a_quiet_time_is_told_of_at_once() {
    let mut lone = lone();
    let listener = lone.listener(1);
    lone.later(MINUTE);
    lone.join(2, true);
    lone.later(SECOND);
    assert_eq!(only(lone.told(listener)).added, [(home(2), PexFlags::REACHABLE)]);
}

#[test]
fn who_came_and_went_meanwhile_is_not_told_of() {
    let mut lone = lone();
    let stays = lone.join(1, true);
    let listener = lone.listener(2);
    lone.later(SECOND);
    lone.told(listener);
    let guest = lone.join(3, true);
    lone.gone(guest);
    lone.gone(stays);
    lone.join(1, true);
    lone.later(2 * MINUTE);
    assert_eq!(lone.told(listener), []);
}

#[test]
fn however_much_changes_there_is_one_message_a_minute() {
    let mut lone = lone();
    let listener = lone.listener(1);
    let mut messages = Vec::new();
    for n in 0..600 {
        let guest = lone.join(2 + (n % 200) as u8, true);
        lone.later(SECOND);
        messages.extend(lone.told(listener));
        lone.gone(guest);
    }
    assert!((5..=11).contains(&messages.len()), "{}", messages.len());
}

#[test]
fn who_could_not_be_told_for_long_is_told_of_all_that_are_there() {
    let mut changes = Changes::default();
    (0..1_000).for_each(|n| changes.note(PeerKey(n), home(n as u8), true));
    assert_eq!(changes.latest.len(), MAX_CHANGES);
    assert!(changes.since(1_000 - MAX_CHANGES as u64).is_some());
    assert!(changes.since(999 - MAX_CHANGES as u64).is_none());
    assert!(changes.since(1_001).is_none());
}

#[test]
fn a_peer_elsewhere_is_not_told_of_those_on_this_machine_or_network() {
    let mut lone = lone();
    for (n, ip) in [[127, 0, 0, 1], [10, 77, 0, 1], [203, 0, 113, 1]].into_iter().enumerate() {
        let addr = SocketAddr::from((ip, 6881));
        let session = PeerSession::new(addr, true, true, true, lone.now);
        lone.machine.peer_connected(PeerKey(100 + n as u64), session, lone.now);
    }
    let listener = lone.listener(1);
    lone.later(SECOND);
    let told = only(lone.told(listener)).added;
    assert_eq!(told, [(SocketAddr::from(([203, 0, 113, 1], 6881)), PexFlags::REACHABLE)]);
}

// ---- what is heard

#[test]
fn whom_a_peer_tells_of_is_connected_to() {
    let mut lone = lone();
    let teller = lone.join(1, true);
    lone.tells(teller, &[home(2), home(3)], PexFlags(0));
    lone.step();
    assert_eq!(lone.tried(), [home(2), home(3)].into());
}

#[test]
fn of_one_message_fifty_peers_of_each_family_are_taken() {
    let mut lone = lone();
    let teller = lone.join(1, true);
    let v4 = (0..150u8).map(|n| SocketAddr::from(([203, 0, 113, n], 6881)));
    let v6 = (0..150u16).map(|n| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 6881)));
    lone.tells(teller, &v4.chain(v6).collect::<Vec<_>>(), PexFlags(0));
    assert_eq!(lone.machine.list.len(), 100);
}

#[test]
fn a_peer_that_tells_without_end_is_disconnected_and_has_not_filled_the_list() {
    let mut lone = lone();
    let liar = lone.join(1, true);
    for n in 0..100u8 {
        let crowd = (0..50).map(|m| SocketAddr::from(([203, 0, n, m], 6881))).collect::<Vec<_>>();
        lone.tells(liar, &crowd, PexFlags(0));
    }
    assert!(lone.machine.list.len() <= 100, "{}", lone.machine.list.len());
    assert!(!lone.machine.peers.contains_key(&liar));
}

#[test]
fn who_sends_us_to_nobody_for_long_is_not_listened_to() {
    let mut lone = lone();
    let liar = lone.join(1, true);
    let mut tried = BTreeSet::new();
    for n in 0..60u8 {
        let ghosts = (0..20).map(|m| SocketAddr::from(([203, 0, n, m], 6881))).collect::<Vec<_>>();
        lone.tells(liar, &ghosts, PexFlags(0));
        lone.step();
        for ghost in lone.tried() {
            lone.machine.connect_failed(ghost, false, lone.now);
            tried.insert(ghost);
        }
        lone.others.clear();
        lone.later(MINUTE);
    }
    assert!((100..=200).contains(&tried.len()), "{} attempts", tried.len());
}

#[test]
fn a_seed_does_not_connect_to_whom_a_peer_calls_a_seed() {
    let mut lone = lone();
    let all = Bitfield::full(10);
    lone.machine.activate(lone.info.clone(), all.clone(), &all, lone.now);
    let teller = lone.join(1, true);
    lone.tells(teller, &[home(2)], PexFlags::UPLOAD_ONLY);
    lone.later(SECOND);
    lone.tells(teller, &[home(3)], PexFlags(0));
    lone.later(SECOND);
    assert_eq!(lone.tried(), [home(3)].into());
}

#[test]
fn nonsense_ends_the_connection() {
    let mut lone = lone();
    let key = lone.join(1, true);
    lone.say(key, Message::Extended(extended::UT_PEX_ID, b"nonsense".as_slice().into()));
    assert!(!lone.machine.peers.contains_key(&key));
}

// ---- when there is no exchange

/// A torrent whose tracker alone may name peers (BEP 27).
fn private(pieces: u32) -> Arc<Info> {
    let mut private = (*info(pieces, 16 << 14)).clone();
    private.private = true;
    Arc::new(private)
}

#[test]
fn with_peer_exchange_off_it_is_neither_offered_nor_heard_nor_told() {
    let mut lone = lone();
    lone.pex(false);
    lone.join(1, true);
    let listener = lone.listener(2);
    assert_eq!(lone.offered(listener), None);
    lone.tells(listener, &[home(3)], PexFlags(0));
    lone.later(2 * MINUTE);
    assert_eq!((lone.told(listener), lone.tried()), (vec![], BTreeSet::new()));
}

#[test]
fn of_a_private_torrent_nothing_is_offered_heard_or_told() {
    let mut lone = lone();
    lone.machine.activate(private(10), Bitfield::empty(10), &Bitfield::full(10), lone.now);
    lone.join(1, true);
    let listener = lone.listener(2);
    assert_eq!(lone.offered(listener), None);
    lone.tells(listener, &[home(3)], PexFlags(0));
    lone.later(2 * MINUTE);
    assert_eq!((lone.told(listener), lone.tried()), (vec![], BTreeSet::new()));
}

#[test]
fn when_a_torrent_proves_to_be_private_the_offer_is_taken_back_and_hearsay_forgotten() {
    let mut lone = lone();
    let options = lone.machine.options.clone();
    lone.machine = Torrent::new(lone.machine.info_hash(), options, 1);
    let listener = lone.listener(1);
    lone.join(2, true);
    assert_eq!(lone.offered(listener), Some(extended::UT_PEX_ID));
    // So that nobody is tried yet.
    lone.machine.limit = 1;
    lone.later(2 * MINUTE);
    assert_eq!(lone.told(listener), [], "it may be private");
    lone.tells(listener, &[home(3)], PexFlags(0));
    assert_eq!(lone.machine.list.len(), 1);
    lone.machine.activate(private(10), Bitfield::empty(10), &Bitfield::full(10), lone.now);
    assert_eq!(lone.offered(listener), None);
    assert_eq!(lone.machine.list.len(), 0);
}

// ---- against a naive model

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Leave(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (10u8..40).prop_map(Step::Join),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => (1u64..80).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whoever_believes_all_messages_knows_who_is_connected(steps in steps()) {
        let mut lone = lone();
        let listener = lone.listener(1);
        let (mut inside, mut believed) = (Vec::<(PeerKey, u8)>::new(), BTreeSet::new());
        for step in steps.into_iter().chain([Step::Wait(62)]) {
            match step {
                Step::Join(n) if inside.iter().all(|(_, inside)| *inside != n) => {
                    inside.push((lone.join(n, true), n));
                }
                Step::Leave(at) if !inside.is_empty() => {
                    let (key, _) = inside.swap_remove(at % inside.len());
                    lone.gone(key);
                }
                Step::Wait(secs) => lone.later(SECOND * secs as u32),
                _ => {}
            }
            for message in lone.told(listener) {
                prop_assert!(message.added.len() <= 50 && message.dropped.len() <= 50);
                for gone in &message.dropped {
                    prop_assert!(believed.remove(gone), "{gone} was never told of");
                }
                believed.extend(message.added.iter().map(|(addr, _)| *addr));
            }
        }
        let connected: BTreeSet<_> = inside.iter().map(|(_, n)| home(*n)).collect();
        prop_assert_eq!(believed, connected);
    }
}
