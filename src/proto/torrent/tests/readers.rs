//! What readers wait for, and how long.

use super::*;

#[test]
fn a_block_that_a_silent_peer_owes_a_reader_comes_from_another_within_a_second() {
    let mut world = World::new(50, 4 * BLOCK_LEN);
    let (silent, good) = (world.seed(), world.seed());
    let reader = world.add(world.none(), true);
    world.know(reader, silent);
    world.know(reader, good);
    world.run(LONG, |w| w.nodes[reader].links.len() == 2);
    world.read(reader, 1, 0..1);
    world.run(LONG, |w| w.nodes[reader].replies.len() == 1);
    world.nodes[silent].silent = true;
    for ticket in 2..10 {
        let began = world.now;
        let at = (ticket - 1) * 4 * u64::from(BLOCK_LEN);
        world.read(reader, ticket, at..at + 100);
        world.run(LONG, |w| w.nodes[reader].replies.contains_key(&Ticket(ticket)));
        assert!(world.now.since(began) < Duration::from_secs(1), "{:?}", world.now.since(began));
    }
}

#[test]
fn a_peer_that_falls_silent_holds_a_sequential_read_up_for_less_than_a_second() {
    let mut world = World::new(400, 4 * BLOCK_LEN);
    let (silent, good) = (world.seed(), world.seed());
    let reader = world.add(world.none(), true);
    for seed in [silent, good] {
        world.nodes[seed].pace = 4 * MS;
        world.know(reader, seed);
    }
    world.run(LONG, |w| w.nodes[reader].links.len() == 2);
    let longest = world.read_all(reader, |w, piece| w.nodes[silent].silent = piece >= 100);
    assert!(longest < 800 * MS, "{longest:?}");
}

#[test]
fn a_slow_peer_does_not_hold_up_a_sequential_read() {
    let mut world = World::new(400, 4 * BLOCK_LEN);
    let (slow, fast) = (world.seed(), world.seed());
    let reader = world.add(world.none(), true);
    world.nodes[slow].pace = 150 * MS;
    world.nodes[fast].pace = 4 * MS;
    world.know(reader, slow);
    world.know(reader, fast);
    world.run(LONG, |w| w.nodes[reader].links.len() == 2);
    let mut began = world.now;
    let longest = world.read_all(reader, |w, piece| {
        if piece == 100 {
            began = w.now;
        }
    });
    assert!(longest < 700 * MS, "{longest:?}");
    let (took, alone) = (world.now.since(began), 300 * 4 * 4 * MS);
    assert!(took < alone + alone / 20, "{took:?}, the fast peer alone {alone:?}");
    let (sent, duplicates) =
        (world.nodes[slow].sent_blocks, world.nodes[reader].machine.totals.wasted);
    assert!(sent > 10, "the slow peer is of some use");
    assert!(duplicates < world.info.geometry.total() / 20, "{duplicates}");
}

#[test]
fn on_demand_fetches_only_the_piece_a_reader_waits_for() {
    let mut world = World::new(50, 4 * BLOCK_LEN);
    let seed = world.seed();
    let reader = world.add(world.none(), true);
    world.know(reader, seed);
    world.read(reader, 1, 1_000_000..1_000_100);
    world.run(LONG, |w| !w.nodes[reader].replies.is_empty());
    assert_eq!(world.nodes[reader].replies[&Ticket(1)].0, ReadEnd::Ready);
    world.run(LONG, |w| w.now > Timestamp::ZERO + Duration::from_secs(30));
    assert_eq!(world.nodes[seed].sent_blocks, 4);
}

#[test]
fn what_a_reader_waits_for_overtakes_the_background() {
    let mut world = World::new(400, 16 * BLOCK_LEN);
    let seed = world.seed();
    let reader = world.leech();
    world.know(reader, seed);
    world.run(LONG, |w| w.nodes[reader].readable.len() > 20);
    let piece = world.info.geometry.pieces().rfind(|p| !world.nodes[reader].readable.contains(p));
    let at = world.info.geometry.piece_range(piece.unwrap()).start;
    let began = world.now;
    world.read(reader, 1, at..at + 1);
    world.run(LONG, |w| !w.nodes[reader].replies.is_empty());
    assert!(world.now.since(began) < 200 * MS, "{:?}", world.now.since(began));
}

#[test]
fn a_read_ends_when_its_time_is_over_or_its_handle_is_closed() {
    let mut world = World::new(10, 2 * BLOCK_LEN);
    let node = world.leech();
    let expires = world.now + Duration::from_secs(2);
    world.nodes[node].machine.read(Ticket(1), HandleId(1), 0..10, world.now, expires);
    world.read(node, 2, 0..10);
    world.run(LONG, |w| w.now >= expires);
    assert_eq!(world.nodes[node].replies[&Ticket(1)], (ReadEnd::TimedOut, expires));
    world.nodes[node].machine.closed(HandleId(1));
    world.settle(node);
    assert_eq!(world.nodes[node].replies[&Ticket(2)].0, ReadEnd::Aborted);
}

#[test]
fn silent_peers_do_not_slow_a_reader_down_for_long() {
    let mut world = World::new(200, 16 * BLOCK_LEN);
    let good = world.seed();
    let silent: Vec<_> = (0..10).map(|_| world.seed()).collect();
    let reader = world.add(world.none(), true);
    world.know(reader, good);
    silent.iter().for_each(|s| world.know(reader, *s));
    silent.iter().for_each(|s| world.nodes[*s].silent = true);
    world.run(LONG, |w| w.nodes[reader].links.len() == 11);
    let began = world.now;
    for ticket in 1..100 {
        let at = ticket * 16 * u64::from(BLOCK_LEN);
        world.read(reader, ticket, at..at + 100);
        world.run(LONG, |w| w.nodes[reader].replies.contains_key(&Ticket(ticket)));
    }
    assert!(world.now.since(began) < Duration::from_secs(8), "{:?}", world.now.since(began));
}

#[test]
fn however_many_answer_nothing_at_all_whoever_answers_is_asked() {
    for (silent, piece) in [(11, 16), (16, 16), (20, 4)] {
        let mut world = World::new(768 / piece, piece * BLOCK_LEN);
        let good = world.seed();
        world.nodes[good].pace = 3 * MS;
        let reader = world.leech();
        world.nodes[reader].machine.set_buffer_budget(32 << 20);
        for _ in 0..silent {
            let seed = world.seed();
            world.nodes[seed].silent = true;
            world.know(reader, seed);
        }
        world.know(reader, good);
        world.run(LONG, |w| w.nodes[reader].links.len() > silent as usize);
        let began = world.now;
        let longest = world.read_all(reader, |_, _| {});
        let (took, alone) = (world.now.since(began), 768 * 3 * MS);
        assert!(took < alone * 2, "{silent} silent peers: {took:?}, without them {alone:?}");
        assert!(longest < Duration::from_secs(1), "{silent} silent peers: {longest:?}");
    }
}
