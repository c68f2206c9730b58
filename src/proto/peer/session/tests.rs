use super::*;
use crate::proto::ids::PeerId;

const PIECE: u64 = 256 << 10;

fn geometry() -> Geometry {
    Geometry::new(1_000 * PIECE, PIECE).unwrap()
}

/// A peer that has `has` pieces, was sent `got` bytes and sent `gave`.
fn peer(has: u32, got: u64, gave: u64) -> PeerSession {
    let now = Timestamp::ZERO;
    let addr = SocketAddr::from(([192, 0, 2, 1], 6881));
    let mut peer = PeerSession::new(addr, true, true, true, now);
    let mut bits = Bitfield::empty(geometry().piece_count());
    for piece in geometry().pieces().take(has as usize) {
        bits.insert(piece);
    }
    peer.holds = Some(Holds::Some(bits));
    peer.am_interested = true;
    peer.up.add(got, now);
    peer.down.add(gave, now);
    peer
}

#[test]
fn who_took_a_lot_and_gave_nothing_although_it_could_owes() {
    assert!(peer(100, CREDIT + 1, 0).owes(PIECE));
    assert!(!peer(100, CREDIT, 0).owes(PIECE));
    assert!(!peer(100, CREDIT + 1, 1).owes(PIECE));
}

#[test]
fn who_has_nothing_for_us_owes_nothing_unless_it_hides_what_it_was_sent() {
    let poor = |has| PeerSession { am_interested: false, ..peer(has, 20 << 20, 0) };
    assert!(!poor(80).owes(PIECE));
    assert!(poor(10).owes(PIECE));
}

#[test]
fn who_is_in_the_middle_of_large_pieces_owes_nothing_yet() {
    let newcomer = PeerSession { am_interested: false, ..peer(0, 40 << 20, 0) };
    assert!(newcomer.owes(PIECE));
    assert!(!newcomer.owes(16 << 20));
}

#[test]
fn a_kept_first_copy_is_forgotten_in_time() {
    let at = |secs| Timestamp::ZERO + Duration::from_secs(secs);
    let mut copies = FirstCopies { lent: 9, kept: 9, ..FirstCopies::default() };
    assert!(!copies.are_kept() && copies.are_passed_on());
    assert!(!FirstCopies::default().are_passed_on(), "there is nothing to tell from");
    copies = FirstCopies { lent: 12, kept: 12, ..copies };
    assert!(copies.are_kept());
    for second in 1..=60 {
        copies.forgive(at(second));
    }
    assert!(!copies.are_kept());
    assert_eq!(copies.kept, 11);
}

#[test]
fn a_seed_that_suggests_is_asked_for_that_until_it_has_been_silent_for_a_while() {
    let at = |ms| Timestamp::ZERO + Duration::from_millis(ms);
    let pieces: Vec<_> = geometry().pieces().take(3).collect();
    let mut seed = PeerSession { holds: Some(Holds::All), ..peer(0, 0, 0) };
    assert!(!seed.is_suggesting(at(0)));
    seed.note_suggestion(pieces[0], at(0));
    seed.note_suggestion(pieces[1], at(100));
    assert_eq!(seed.suggestion(|_| true), Some(pieces[0]));
    assert_eq!(seed.suggestion(|p| p != pieces[0]), Some(pieces[1]));
    assert!(seed.is_suggesting(at(1_000)) && !seed.is_suggesting(at(1_100)));
    seed.note_block(pieces[2], at(1_050));
    assert!(!seed.is_suggesting(at(1_100)), "that was no suggestion");
    seed.note_block(pieces[1], at(1_050));
    assert!(seed.is_suggesting(at(2_000)));
    seed.forget_suggestions();
    assert!(!seed.is_suggesting(at(2_000)));
    let mut leecher = peer(5, 0, 0);
    leecher.note_suggestion(pieces[0], at(0));
    assert!(!leecher.is_suggesting(at(0)), "only seeds hand out");
}

#[test]
fn hashes_are_asked_of_those_with_whom_v2_was_agreed_on() {
    let root = [1; 32];
    let raw = [
        &b"d9:file treed1:ad0:d6:lengthi1e11:pieces root32:"[..],
        &root,
        b"eee6:lengthi1e12:meta versioni2e4:name1:a12:piece lengthi16384e6:pieces20:",
        &[7; 20],
        b"e",
    ];
    let info = Info::parse(raw.concat()).unwrap();
    let v2_hash = info.info_hash_v2().unwrap().truncated();
    let gives = |ours: Reserved, theirs: Reserved, info_hash| {
        let theirs = Handshake { reserved: theirs, info_hash, peer_id: PeerId::new([b'x'; 20]) };
        let addr = SocketAddr::from(([192, 0, 2, 1], 6881));
        let peer = PeerSession::greeted(addr, true, ours, &theirs, Timestamp::ZERO);
        peer.gives_hashes(&info)
    };
    let (v1, v2) = (Reserved::ours(), Reserved::ours().with_v2());
    assert!(gives(v2, v2, info.info_hash));
    assert!(!gives(v1, v2, info.info_hash), "we had the v1 hash alone when we greeted it");
    assert!(!gives(v2, v1, info.info_hash));
    assert!(gives(v1, v1, v2_hash), "the hash says it too");
}
