//! Many peers at once.

use std::cmp::Reverse;

use super::*;
use crate::proto::torrent::hostile::Lone;

#[test]
fn what_is_asked_of_many_peers_together_is_what_our_downlink_brings_soon() {
    let mut lone = Lone::new(400, 16, |_| true);
    lone.machine.set_buffer_budget(1 << 30);
    let seeds: Vec<_> = (0..40).map(|_| lone.seed()).collect();
    lone.step();
    assert!(lone.asked.len() <= 64 + seeds.len(), "{}", lone.asked.len());
    assert!(seeds.iter().all(|key| !lone.asked_of(*key).is_empty()), "each is tried");
    // 30 blocks a second come, whoever was asked.
    for _ in 0..300 {
        let mut oldest: Vec<_> = lone.asked.iter().copied().collect();
        oldest.sort_by_key(|(key, block)| Reverse(lone.age(*key, *block)));
        for (key, block) in oldest.into_iter().take(3) {
            lone.give(key, block);
        }
        lone.now = lone.now + Duration::from_millis(100);
        lone.step();
    }
    assert!(lone.asked.len() <= 64 + seeds.len(), "{}", lone.asked.len());
    assert!(lone.times.values().all(|times| *times == 1), "nothing was asked for twice");
}

#[test]
fn a_torrent_that_was_just_mounted_is_left_to_its_first_reader_for_a_moment() {
    for read in [true, false] {
        let mut lone = Lone::new(400, 16, |_| true);
        lone.now = Timestamp::ZERO + Duration::from_millis(20);
        lone.seed();
        lone.step();
        assert!(lone.asked.is_empty());
        if read {
            lone.read(7);
            lone.step();
            assert!(lone.asked.iter().all(|(_, block)| block.piece.get() == 7));
            assert_eq!(lone.asked.len(), 16);
            lone.now = lone.now + Duration::from_millis(100);
            lone.step();
            assert!(lone.machine.poll_timeout() > lone.now);
        } else {
            assert!(lone.machine.poll_timeout() <= Timestamp::ZERO + Duration::from_millis(100));
            lone.now = lone.machine.poll_timeout();
            lone.step();
            assert_eq!(lone.asked.len(), 16);
        }
    }
}
