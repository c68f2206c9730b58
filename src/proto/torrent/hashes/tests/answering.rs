//! Hashes that peers ask us for.

use super::*;

#[test]
fn questions_of_peers_are_answered_from_layers_and_from_the_bytes_of_pieces() {
    let mut world = World::seeding(64, 16);
    let peer = world.lone.holder_as(true, true, |_| false);
    world.ask(peer, 4, 0, 4);
    world.step();
    assert_eq!(world.answers_to(peer), [Some(4)]);
    // Two questions about one piece: it is hashed once.
    world.ask(peer, 0, 16, 16);
    world.ask(peer, 1, 8, 2);
    world.step();
    assert_eq!((world.answers_to(peer).len(), &world.reads[..]), (0, &[1][..]));
    world.blocks_hashed(1);
    world.step();
    assert_eq!(world.answers_to(peer), [Some(16), Some(2)]);
    // Of two pieces at once, outside, not aligned, of no file.
    world.ask(peer, 0, 0, 32);
    world.ask(peer, 0, 64, 2);
    world.ask(peer, 0, 1, 2);
    world.ask(peer, 9, 0, 2);
    let root = [1; 32];
    let nobodys = RawHashes { root, layer: 0, index: 0, length: 2, proof_layers: 0 };
    world.lone.say(peer, Message::HashRequest(nobodys));
    world.step();
    assert_eq!(world.answers_to(peer), [None; 5]);
    assert_eq!(world.reads, [1]);
}

#[test]
fn who_asks_too_often_is_rejected_and_few_pieces_are_hashed_at_a_time() {
    let mut world = World::seeding(1024, 16);
    let (greedy, other) =
        (world.lone.holder_as(true, true, |_| false), world.lone.holder_as(true, true, |_| false));
    for piece in 0..64 {
        world.ask(greedy, 0, piece * 16, 16);
    }
    world.ask(other, 0, 63 * 16, 16);
    world.step();
    assert_eq!(world.answers_to(greedy).len(), 48, "it is choked");
    assert_eq!(world.reads.len(), 4);
    let first = world.reads[0];
    world.blocks_hashed(first);
    world.step();
    assert_eq!(world.reads.last(), Some(&63), "whoever had none for longest comes first");
    // Answers that cost no reading.
    world.lone.sent.clear();
    for _ in 0..100_000 {
        world.ask(other, 4, 0, 64);
    }
    world.step();
    let answered = world.answers_to(other).iter().flatten().sum::<usize>();
    assert!((32_000..34_000).contains(&answered), "{answered} hashes");
    world.lone.now = world.lone.now + Duration::from_secs(1);
    world.ask(other, 4, 0, 64);
    world.step();
    assert_eq!(world.answers_to(other), [Some(64)]);
}
