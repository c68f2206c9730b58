//! Dividing what there is among those who want it.

/// How much each of those who want `wants` gets of `total`: nobody gets more than it wants, and
/// nobody gets less than it wants while another gets more than one beyond it (max-min fairness).
pub fn fair_shares(total: usize, wants: &[usize]) -> Vec<usize> {
    let mut order: Vec<_> = wants.iter().copied().enumerate().collect();
    order.sort_by_key(|(_, want)| *want);
    let (mut shares, mut left) = (vec![0; wants.len()], total);
    for (served, (who, want)) in order.into_iter().enumerate() {
        // Those who want least come first, so that what they leave goes to the others.
        let share = want.min(left / (wants.len() - served));
        left -= share;
        if let Some(slot) = shares.get_mut(who) {
            *slot = share;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_wants_little_gets_it_and_the_others_share_the_rest() {
        assert_eq!(fair_shares(100, &[50, 5, 80, 5]), [45, 5, 45, 5]);
        assert_eq!(fair_shares(100, &[10, 20]), [10, 20]);
        assert_eq!(fair_shares(100, &[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn shares_are_fair(total in 0usize..1_000, wants in prop::collection::vec(0usize..60, 1..50)) {
            let shares = fair_shares(total, &wants);
            prop_assert_eq!(shares.iter().sum::<usize>(), total.min(wants.iter().sum()));
            let most = shares.iter().max().unwrap();
            for (share, want) in shares.iter().zip(&wants) {
                prop_assert!(share == want || share < want && share + 1 >= *most);
            }
        }
    }
}
