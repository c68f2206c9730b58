//! What the cache lets go of when it is full, and what it leaves room for. The bytes are the store's.

use std::cmp::Reverse;

/// Out of this many parts of the budget, one is left to readers: the background download stops before
/// it. What readers fetch then takes the place of what was least recently used, and there is never so
/// much room at once that the background would fetch again what has just been let go.
const READERS_SHARE: u64 = 8;

/// Out of this many parts of the budget, one is what all that is read ahead may take.
const WINDOWS_SHARE: u64 = 4;

/// Out of this many parts of the budget, one is what the files may take that the kernel reads itself: they
/// are not let go while they are open, which may be for ever.
const WHOLE_FILES_SHARE: u64 = 2;

/// Out of this many parts of the budget, one is made free at a time, beyond what is needed: looking
/// through all pieces for each of them would take too long.
const BATCH_SHARE: u64 = 64;

/// The most bytes made free at a time.
const MAX_BATCH: u64 = 64 << 20;

/// A piece that may be let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<T> {
    /// What it is.
    pub what: T,
    /// When it was last read, in seconds of any clock; 0 for never.
    pub used: u32,
    /// Connected peers that have it.
    pub copies: u32,
    /// What letting it go makes free, in bytes.
    pub bytes: u64,
}

/// Which of the candidates of several torrents to let go so that `need` bytes become free, in order, each
/// with the number of its torrent: what was least recently read, and among equals what most peers have.
/// Of what is equal in that too, the torrent that has most bytes of it loses first, so it does not matter how
/// little is needed at a time. All of them if they are too few.
pub fn choose<T>(of_each: Vec<Vec<Candidate<T>>>, need: u64) -> Vec<(usize, T)> {
    let order = |c: &Candidate<T>| (c.used, Reverse(c.copies));
    let mut all = Vec::new();
    for (number, mut own) in of_each.into_iter().enumerate() {
        own.sort_by_key(order);
        // From the last to go on: what there is of equals when it is a candidate's turn.
        let (mut left, mut after) = (0u64, None);
        for c in own.into_iter().rev() {
            let order = order(&c);
            left = if after == Some(order) { left.saturating_add(c.bytes) } else { c.bytes };
            after = Some(order);
            all.push((order, Reverse(left), number, c));
        }
    }
    // The first of a torrent come first, be they empty.
    all.reverse();
    all.sort_by_key(|(order, left, ..)| (*order, *left));
    let mut free = 0u64;
    let enough = |(.., c): &(_, _, _, Candidate<T>)| {
        let more = free < need;
        free = free.saturating_add(c.bytes);
        more
    };
    all.into_iter().take_while(enough).map(|(.., number, c)| (number, c.what)).collect()
}

/// Bytes that may be fetched in the background, of a budget of `limit` of which `taken` are taken,
/// `idle` of them by torrents that nobody uses.
pub fn background_room(limit: u64, taken: u64, idle: u64) -> u64 {
    (limit - limit / READERS_SHARE).saturating_add(idle).saturating_sub(taken)
}

/// Bytes that each of so many handles may read ahead: all of it must find room beside what else is read.
pub fn window_share(limit: u64, handles: usize) -> u64 {
    limit / WINDOWS_SHARE / (handles as u64).max(1)
}

/// Bytes that the files may take together that the kernel reads itself.
pub fn whole_files_share(limit: u64) -> u64 {
    limit / WHOLE_FILES_SHARE
}

/// Bytes to make free beyond what is needed.
pub fn batch(limit: u64) -> u64 {
    (limit / BATCH_SHARE).min(MAX_BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate<usize>>> {
        let one = (0u32..5, 0u32..4, 0u64..100);
        prop::collection::vec(one, 0..60).prop_map(|all| {
            let candidate = |(what, (used, copies, bytes))| Candidate { what, used, copies, bytes };
            all.into_iter().enumerate().map(candidate).collect()
        })
    }

    #[test]
    fn what_was_never_read_goes_first_and_of_that_what_most_have() {
        let piece = |what, used, copies| Candidate { what, used, copies, bytes: 10 };
        let all = vec![piece('a', 7, 9), piece('b', 0, 1), piece('c', 0, 5), piece('d', 3, 0)];
        let chosen = |need| choose(vec![all.clone()], need);
        assert_eq!(chosen(25), [(0, 'c'), (0, 'b'), (0, 'd')]);
        assert!(chosen(0).is_empty());
        assert_eq!(chosen(1000).len(), 4);
    }

    #[test]
    fn among_equals_the_torrent_that_has_most_loses_first_however_little_is_needed() {
        let piece = |what| Candidate { what, used: 0, copies: 0, bytes: 10 };
        let torrents = || [10, 40, 25].map(|pieces| (0..pieces).map(piece).collect::<Vec<_>>());
        let left = |need: u64, times: usize| {
            let mut torrents = torrents();
            for _ in 0..times {
                for (number, what) in choose(torrents.to_vec(), need) {
                    torrents[number].retain(|c| c.what != what);
                }
            }
            torrents.map(|own| own.len())
        };
        assert_eq!(left(150, 1), [10, 25, 25]);
        assert_eq!(left(10, 15), [10, 25, 25]);
        assert_eq!(left(600, 1), [5, 5, 5]);
        assert_eq!(left(10, 60), [5, 5, 5]);
    }

    proptest! {
        #[test]
        fn enough_is_chosen_no_more_and_nothing_better(
            all in candidates(),
            need in 0u64..2000,
            torrents in 1usize..4,
        ) {
            let mut of_each = vec![Vec::new(); torrents];
            all.iter().for_each(|c| of_each[c.what % torrents].push(*c));
            let chosen = choose(of_each, need);
            prop_assert!(chosen.iter().all(|(number, what)| what % torrents == *number));
            let chosen: Vec<_> = chosen.into_iter().map(|(_, what)| what).collect();
            let bytes = |of: &[usize]| of.iter().map(|&i| all[i].bytes).sum::<u64>();
            prop_assert!(bytes(&chosen) >= need || chosen.len() == all.len());
            if let Some((_, but_last)) = chosen.split_last() {
                prop_assert!(bytes(but_last) < need);
            }
            let order = |i: usize| (all[i].used, Reverse(all[i].copies));
            let worst = chosen.iter().map(|&i| order(i)).max();
            for kept in (0..all.len()).filter(|i| !chosen.contains(i)) {
                prop_assert!(worst.is_none_or(|worst| worst <= order(kept)));
            }
        }

        #[test]
        fn a_batch_leaves_the_background_where_it_stopped(limit: u64, need in 0u64..1 << 20) {
            // Full, and then so much let go as a piece needs: there is nothing for the background.
            let taken = limit.saturating_sub(batch(limit));
            prop_assert_eq!(background_room(limit, taken, 0), 0);
            prop_assert!(background_room(limit, limit, need) <= need);
        }

        #[test]
        fn all_windows_together_stay_within_their_share(limit: u64, handles in 0usize..1000) {
            let all = window_share(limit, handles).checked_mul(handles as u64);
            prop_assert!(all.unwrap() <= limit / WINDOWS_SHARE);
        }
    }
}
