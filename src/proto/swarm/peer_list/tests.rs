use proptest::prelude::*;

use super::super::informants::MAX_PER_INFORMANT;
use super::*;

const NONE: BTreeSet<SocketAddr> = BTreeSet::new();

fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], n))
}

fn at(secs: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(secs)
}

/// A list to which things are done as a torrent without connections would do them.
struct Lone(PeerList);

impl Lone {
    fn new() -> Self {
        Self(PeerList::new(1))
    }

    fn add(&mut self, addr: SocketAddr, source: PeerSource) -> bool {
        self.0.add(addr, source, PexFlags::default(), &NONE)
    }

    fn add_all(&mut self, ports: std::ops::RangeInclusive<u16>, source: PeerSource) {
        for port in ports {
            self.add(addr(port), source);
        }
    }

    fn next(&mut self, secs: u64) -> Option<SocketAddr> {
        self.0.next_to_connect(&search(), at(secs))
    }

    fn fails(&mut self, addr: SocketAddr, useful: bool, secs: u64) {
        self.0.attempt_ended(addr);
        self.0.failed(addr, useful, at(secs));
    }

    fn count(&self, source: PeerSource) -> usize {
        self.0.known.values().filter(|k| k.source == source).count()
    }
}

fn search() -> Search {
    Search { attempts: 50, ..Search::default() }
}

#[test]
fn failures_back_off_and_forget() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    let (mut secs, mut tries) = (0, 0);
    while !list.0.is_empty() {
        assert_eq!(list.next(secs), Some(addr(1)));
        assert_eq!(list.next(secs), None);
        list.fails(addr(1), false, secs);
        tries += 1;
        assert_eq!(list.next(secs + FIRST_RETRY.as_secs() / 2), None);
        secs += LAST_RETRY.as_secs();
    }
    assert_eq!(tries, MAX_FAILURES + 1);
}

#[test]
fn who_was_useful_is_tried_again_soon() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    list.fails(addr(1), true, 10);
    assert_eq!(list.next(10), None);
    assert_eq!(list.next(11), Some(addr(1)));
    list.fails(addr(1), false, 11);
    assert_eq!(list.next(15), None);
}

#[test]
fn who_was_named_is_tried_again_every_few_seconds() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Manual);
    let tries: Vec<_> = (0..30)
        .filter(|&second| {
            let tried = list.next(second).is_some();
            if tried {
                list.fails(addr(1), false, second);
            }
            tried
        })
        .collect();
    assert_eq!(tries, [0, 1, 3, 7, 12, 17, 22, 27]);
}

#[test]
fn a_liar_is_never_tried_again_but_its_neighbour_is() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    list.add(addr(2), PeerSource::Tracker);
    list.0.ban(addr(1), &NONE);
    assert!(!list.add(addr(1), PeerSource::Tracker));
    assert_eq!(list.next(1), Some(addr(2)));
    list.0.ban(addr(3), &NONE);
    list.0.ban(addr(4), &NONE);
    assert!(list.0.is_banned(addr(2)));
    assert_eq!(list.0.banned(), 3);
}

#[test]
fn who_is_banned_with_its_neighbours_is_not_tried() {
    let mut list = Lone::new();
    list.add(addr(2), PeerSource::Tracker);
    (3..6).for_each(|n| list.0.ban(addr(n), &NONE));
    assert_eq!(list.next(1), None);
}

#[test]
fn a_connection_that_was_under_way_does_not_lift_a_ban() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    list.next(1);
    list.0.ban(addr(1), &NONE);
    list.0.attempt_ended(addr(1));
    assert!(list.0.is_banned(addr(1)));
}

#[test]
fn a_peer_that_gave_something_is_tried_again_however_long_it_is_away() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    list.next(0);
    list.fails(addr(1), true, 10);
    for minute in 1..60 {
        assert_eq!(list.next(minute * 60 + 10), Some(addr(1)));
        list.fails(addr(1), false, minute * 60 + 10);
    }
}

#[test]
fn a_seeder_does_not_look_for_seeds() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    list.0.is_seed(addr(1));
    let seeding = Search { seeding: true, ..search() };
    assert_eq!(list.0.next_to_connect(&seeding, at(1)), None);
    assert_eq!(list.next(1), Some(addr(1)));
}

#[test]
fn who_is_connected_is_not_tried() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    let connected = Search { connected: [addr(1)].into(), ..search() };
    assert_eq!(list.0.next_to_connect(&connected, at(1)), None);
    assert!(!list.0.has_candidate(&connected, at(1)));
    assert_eq!(list.next(1), Some(addr(1)));
}

#[test]
fn as_many_attempts_are_under_way_as_may_be() {
    let mut list = Lone::new();
    list.add_all(1..=9, PeerSource::Tracker);
    let few = Search { attempts: 3, ..search() };
    let tried: Vec<_> = std::iter::from_fn(|| list.0.next_to_connect(&few, at(1))).collect();
    assert_eq!(tried.len(), 3);
    list.0.attempt_ended(tried[0]);
    assert!(list.0.next_to_connect(&few, at(1)).is_some());
}

#[test]
fn among_equals_the_highest_priority_is_first() {
    let mut list = Lone::new();
    let here = SocketAddr::from(([198, 51, 100, 7], 6881));
    let ours = Ourselves { v4: Some(here), v6: None };
    let peers: Vec<_> = (1..=40).map(|n| SocketAddr::from(([203, 0, 113, n], 6881))).collect();
    peers.iter().for_each(|peer| assert!(list.add(*peer, PeerSource::Tracker)));
    list.fails(peers[0], false, 0);
    let search = Search { ours, ..search() };
    let tried: Vec<_> = std::iter::from_fn(|| list.0.next_to_connect(&search, at(60))).collect();
    assert_eq!(tried.len(), 40);
    assert_eq!(tried[39], peers[0], "one that failed comes last");
    let by_priority = tried[..39].iter().enumerate().filter(|(n, _)| n % BY_LOT != BY_LOT - 1);
    let priorities: Vec<_> = by_priority.map(|(_, peer)| ours.priority(*peer)).collect();
    assert!(priorities.is_sorted_by(|a, b| a >= b), "{priorities:?}");
}

#[test]
fn nodes_that_do_not_know_their_address_choose_differently() {
    let first_ten = |salt| -> BTreeSet<_> {
        let mut list = Lone(PeerList::new(salt));
        list.add_all(1..=200, PeerSource::Tracker);
        (0..10).filter_map(|_| list.next(1)).collect()
    };
    let common = first_ten(1).intersection(&first_ten(2)).count();
    assert!(common < 5, "{common} of ten alike");
}

#[test]
fn a_better_source_comes_first_and_is_remembered() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Pex(addr(9).ip()));
    list.add(addr(2), PeerSource::Tracker);
    assert!(!list.add(addr(1), PeerSource::Manual), "it is not new");
    assert!(list.0.is_manual(addr(1)));
    assert_eq!([list.next(1), list.next(1)], [Some(addr(1)), Some(addr(2))]);
}

#[test]
fn the_list_is_bounded() {
    let mut list = Lone::new();
    list.add_all(1..=5_000, PeerSource::Tracker);
    assert_eq!(list.0.len(), MAX_KNOWN);
    assert!(!list.add(addr(0), PeerSource::Tracker));
}

#[test]
fn bans_are_bounded_and_leave_room_for_others() {
    let mut list = Lone::new();
    for n in 0..5_000u128 {
        let liar = std::net::Ipv6Addr::from((n + 1) << 64);
        list.0.ban(SocketAddr::from((liar, 1)), &NONE);
    }
    assert!(list.0.len() <= MAX_KNOWN && list.0.liars.len() <= MAX_KNOWN);
    assert!(list.add(addr(1), PeerSource::Tracker));
}

#[test]
fn what_peers_say_does_not_push_out_what_trackers_say() {
    let mut list = Lone::new();
    (1..=MAX_KNOWN as u16).for_each(|n| assert!(list.add(addr(n), PeerSource::Tracker)));
    for n in 0..200u16 {
        let peer = SocketAddr::from(([203, 0, (n >> 8) as u8, n as u8], 1));
        list.add(peer, PeerSource::Incoming);
        list.add(peer, PeerSource::Pex(peer.ip()));
    }
    assert_eq!(list.count(PeerSource::Tracker), MAX_KNOWN);
}

#[test]
fn what_trackers_say_takes_the_place_of_what_peers_say() {
    let mut list = Lone::new();
    for n in 0..2_050u16 {
        let peer = SocketAddr::from(([203, 0, (n >> 8) as u8, n as u8], 1));
        list.add(peer, PeerSource::Incoming);
    }
    (1..=100).for_each(|n| assert!(list.add(addr(n), PeerSource::Tracker)));
    assert_eq!((list.count(PeerSource::Tracker), list.0.len()), (100, MAX_KNOWN));
}

#[test]
fn one_peer_fills_only_its_share_of_the_list() {
    let mut list = Lone::new();
    let (liar, honest) = (IpAddr::from([203, 0, 113, 1]), IpAddr::from([203, 0, 113, 2]));
    list.add_all(1..=1_000, PeerSource::Pex(liar));
    assert_eq!(list.0.len(), MAX_PER_INFORMANT);
    assert!(list.add(addr(2_000), PeerSource::Pex(honest)));
}

#[test]
fn one_address_that_claims_port_after_port_fills_only_its_share_of_the_list() {
    let mut list = Lone::new();
    list.add_all(1..=1_000, PeerSource::Incoming);
    assert_eq!(list.0.len(), MAX_PER_INFORMANT);
}

#[test]
fn who_is_connected_is_not_dropped_for_others() {
    let mut list = Lone::new();
    let connected = [addr(1)].into();
    list.add(addr(1), PeerSource::Tracker);
    list.0.failed(addr(1), false, at(0));
    for n in 2..=4_000 {
        list.0.add(addr(n), PeerSource::Tracker, PexFlags::default(), &connected);
    }
    assert!(list.0.known.contains_key(&addr(1)));
}

#[test]
fn a_peer_elsewhere_cannot_have_us_knock_on_this_machine_or_network() {
    let usable = |told: &str, by: &str| {
        let told = SocketAddr::new(told.parse().unwrap(), 80);
        Lone::new().add(told, PeerSource::Pex(by.parse().unwrap()))
    };
    for inside in ["127.0.0.1", "10.0.0.1", "169.254.1.1", "::1", "fc00::1", "::ffff:127.0.0.1"] {
        assert!(!usable(inside, "198.51.100.1"), "{inside}");
    }
    assert!(usable("203.0.113.1", "198.51.100.1"));
    assert!(usable("127.0.0.1", "127.0.0.2"));
    assert!(usable("192.168.0.1", "192.168.0.2"));
    assert!(!usable("127.0.0.1", "192.168.0.2"));
}

// ---- against a naive model

#[derive(Clone, Debug)]
enum Step {
    Add(u16, u8),
    Next,
    Fail(u16, bool),
    Connect(u16),
    Disconnect(u16, bool),
    Ban(u16),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 1u16..12;
    prop_oneof![
        3 => (n(), 0u8..6).prop_map(|(n, source)| Step::Add(n, source)),
        4 => Just(Step::Next),
        3 => (n(), any::<bool>()).prop_map(|(n, useful)| Step::Fail(n, useful)),
        2 => n().prop_map(Step::Connect),
        2 => (n(), any::<bool>()).prop_map(|(n, useful)| Step::Disconnect(n, useful)),
        1 => n().prop_map(Step::Ban),
        3 => (0u64..200).prop_map(Step::Wait),
    ]
}

fn source(n: u8) -> PeerSource {
    match n {
        0 => PeerSource::Manual,
        1 => PeerSource::Lsd,
        2 => PeerSource::Tracker,
        3 => PeerSource::Dht,
        4 => PeerSource::Pex(IpAddr::from([198, 51, 100, 1])),
        _ => PeerSource::Incoming,
    }
}

/// Each on an address of its own, so that no neighbours are banned with it.
fn peer(n: u16) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, n as u8], n))
}

/// What anybody would write down of a peer.
#[derive(Clone, Debug, Default)]
struct Note {
    rank: u8,
    failures: u32,
    /// When the list says that it will be tried again, in seconds.
    not_before: u64,
    trying: bool,
    banned: bool,
}

#[derive(Default)]
struct Model {
    now: u64,
    notes: BTreeMap<u16, Note>,
    connected: BTreeSet<u16>,
}

impl Model {
    fn may_be_tried(&self, n: u16) -> bool {
        self.notes
            .get(&n)
            .is_some_and(|note| !note.trying && !note.banned && !self.connected.contains(&n))
    }

    fn search(&self) -> Search {
        let connected = self.connected.iter().map(|n| peer(*n)).collect();
        Search { connected, attempts: 4, ..Search::default() }
    }

    /// Checks what the list chose against everything that is known.
    fn check_choice(&mut self, chosen: Option<SocketAddr>) {
        let trying = self.notes.values().filter(|note| note.trying).count();
        let ripe = |n: &u16| self.may_be_tried(*n) && self.notes[n].not_before <= self.now;
        let standing = |n: u16| (self.notes[&n].failures, self.notes[&n].rank);
        let best = self.notes.keys().filter(|n| ripe(n)).map(|n| standing(*n)).min();
        let Some(chosen) = chosen.map(|addr| addr.port()) else {
            assert!(trying >= 4 || best.is_none(), "{best:?} should be tried");
            return;
        };
        assert!(trying < 4, "too many attempts");
        assert!(ripe(&chosen), "{chosen} must not be tried now: {:?}", self.notes[&chosen]);
        assert_eq!(Some(standing(chosen)), best);
        self.notes.get_mut(&chosen).unwrap().trying = true;
    }
}

/// When the list will try this peer again.
fn next_try(list: &PeerList, n: u16) -> u64 {
    list.known[&peer(n)].next_try.since(Timestamp::ZERO).as_secs()
}

fn fail(model: &mut Model, list: &mut PeerList, n: u16, useful: bool) {
    list.attempt_ended(peer(n));
    list.failed(peer(n), useful, at(model.now));
    let Some(note) = model.notes.get_mut(&n) else { return };
    note.trying = false;
    note.failures = if useful { 0 } else { note.failures + 1 };
    if !list.known.contains_key(&peer(n)) {
        assert!(note.failures > MAX_FAILURES && note.rank > 0 && !note.banned);
        model.notes.remove(&n);
        return;
    }
    note.not_before = next_try(list, n);
    assert!(note.not_before > model.now, "tried again at once");
    assert!(note.not_before <= model.now + LAST_RETRY.as_secs());
}

#[test]
fn who_has_no_room_is_tried_ever_more_seldom_and_not_forgotten() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    let mut now = 0;
    for _ in 0..20 {
        assert_eq!(list.next(now), Some(addr(1)));
        list.0.attempt_ended(addr(1));
        list.0.turned_away(addr(1), at(now));
        assert_eq!(list.next(now), None);
        now += LAST_RETRY.as_secs();
    }
    let wait = list.0.known[&addr(1)].next_try;
    assert_eq!(wait, at(now));
}

proptest! {
    #[test]
    fn the_list_does_what_a_naive_one_does(steps in prop::collection::vec(step(), 0..200)) {
        let (mut list, mut model) = (PeerList::new(3), Model::default());
        for step in steps {
            match step {
                Step::Add(n, from) => {
                    let connected = model.search().connected;
                    let new = list.add(peer(n), source(from), PexFlags::default(), &connected);
                    prop_assert_eq!(new, !model.notes.contains_key(&n));
                    let rank = source(from).rank();
                    let note = model.notes.entry(n).or_insert(Note { rank, ..Note::default() });
                    note.rank = note.rank.min(rank);
                }
                Step::Next => {
                    let chosen = list.next_to_connect(&model.search(), at(model.now));
                    model.check_choice(chosen);
                }
                Step::Fail(n, useful) if model.notes.get(&n).is_some_and(|note| note.trying) => {
                    fail(&mut model, &mut list, n, useful);
                }
                Step::Connect(n) => {
                    list.attempt_ended(peer(n));
                    model.connected.insert(n);
                    if let Some(note) = model.notes.get_mut(&n) {
                        note.trying = false;
                    }
                }
                Step::Disconnect(n, useful) if model.connected.remove(&n) => {
                    fail(&mut model, &mut list, n, useful);
                }
                Step::Ban(n) => {
                    list.ban(peer(n), &model.search().connected);
                    let note = Note { rank: 5, ..Note::default() };
                    let note = model.notes.entry(n).or_insert(note);
                    (note.banned, note.trying) = (true, false);
                }
                Step::Wait(secs) => model.now += secs,
                Step::Fail(..) | Step::Disconnect(..) => {}
            }
            let banned = model.notes.values().filter(|note| note.banned).count();
            let trying = model.notes.values().filter(|note| note.trying).count();
            prop_assert_eq!(list.banned(), banned);
            prop_assert_eq!(list.attempts, trying);
            prop_assert_eq!(list.len(), model.notes.len());
        }
    }

    /// Failure after failure the wait grows, until it is as long as it gets.
    #[test]
    fn back_off_never_shrinks(n in 0u8..6, proven: bool) {
        let mut list = Lone::new();
        list.add(addr(1), source(n));
        if proven {
            list.fails(addr(1), true, 0);
        }
        let mut last = 0;
        for round in 0..20 {
            list.fails(addr(1), false, round * 10_000);
            if list.0.is_empty() {
                prop_assert!(n > 0 && !proven && round + 1 > u64::from(MAX_FAILURES));
                break;
            }
            let known = &list.0.known[&addr(1)];
            let wait = known.next_try.since(at(round * 10_000)).as_secs();
            prop_assert!(wait >= last && wait <= LAST_RETRY.as_secs(), "{wait} after {last}");
            last = wait;
        }
    }

    /// Whatever is told by whomever, the list stays within its bounds.
    #[test]
    fn any_hearsay_is_bounded(
        told in prop::collection::vec((any::<[u8; 4]>(), 0u16..4, 0u8..6, any::<u8>()), 0..600),
    ) {
        let mut list = Lone::new();
        for (ip, port, from, informant) in told {
            let from = match source(from) {
                PeerSource::Pex(_) => PeerSource::Pex(IpAddr::from([198, 51, 100, informant % 3])),
                other => other,
            };
            list.add(SocketAddr::from((ip, port)), from);
            prop_assert!(list.0.len() <= MAX_KNOWN);
        }
        for informant in 0..3 {
            let from = PeerSource::Pex(IpAddr::from([198, 51, 100, informant]));
            prop_assert!(list.count(from) <= MAX_PER_INFORMANT);
        }
        prop_assert!(list.0.known.keys().all(|a| a.port() != 0 && !a.ip().is_unspecified()));
    }
}

#[test]
fn the_local_network_does_not_fill_the_list() {
    let mut list = Lone::new();
    list.add_all(1..=1_000, PeerSource::Lsd);
    assert_eq!(list.count(PeerSource::Lsd), MAX_FROM_LSD);
    assert!(list.add(addr(2_000), PeerSource::Tracker));
}

#[test]
fn a_link_local_peer_is_connected_to_through_its_interface() {
    let mut list = Lone::new();
    let peer = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 6881, 0, 3).into();
    assert!(list.add(peer, PeerSource::Lsd));
    assert_eq!(list.next(0), Some(peer));
}

#[test]
fn our_own_address_is_never_tried_again_whoever_names_it() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Dht);
    assert_eq!(list.next(0), Some(addr(1)));
    list.0.attempt_ended(addr(1));
    list.0.is_ourselves(addr(1));
    for source in [PeerSource::Dht, PeerSource::Tracker, PeerSource::Pex(addr(2).ip())] {
        list.add(addr(1), source);
    }
    assert_eq!(list.next(1_000_000), None);
    list.add(addr(2), PeerSource::Dht);
    assert_eq!(list.next(1_000_000), Some(addr(2)));
}

#[test]
fn who_could_not_be_reached_from_elsewhere_is_tried_again() {
    let mut list = Lone::new();
    list.add(addr(1), PeerSource::Tracker);
    for secs in [0, 5] {
        assert_eq!(list.next(secs), Some(addr(1)));
        list.fails(addr(1), false, secs);
    }
    assert_eq!(list.next(6), None);
    list.0.try_all_again();
    assert_eq!(list.next(6), Some(addr(1)));
}
