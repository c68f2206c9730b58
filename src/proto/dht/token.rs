//! Tokens: whoever announces or puts shows by one that it asked from the same address before, so
//! nobody can be announced by others (BEP 5).

use std::net::IpAddr;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use sha1::{Digest, Sha1};

use crate::proto::time::Timestamp;

/// How long tokens of one kind are given out; they are taken twice as long (BEP 5).
pub const ROTATION: Duration = Duration::from_secs(5 * 60);

/// The length of our tokens, in bytes: one guess in 2⁶⁴ is right.
pub const TOKEN_LEN: usize = 8;

/// Gives out tokens and knows them again, without keeping any.
#[derive(Clone, Debug)]
pub struct Tokens {
    secret: [u8; 20],
}

impl Tokens {
    /// Tokens that nobody else can make.
    pub fn new(rng: &mut ChaCha8Rng) -> Self {
        Self { secret: rng.random() }
    }

    /// A token for whoever is at `ip`.
    pub fn give(&self, ip: IpAddr, now: Timestamp) -> [u8; TOKEN_LEN] {
        self.of(ip, period(now))
    }

    /// Whether `token` was given to `ip` in this period or the one before.
    pub fn accepts(&self, token: &[u8], ip: IpAddr, now: Timestamp) -> bool {
        let current = period(now);
        let previous = current.checked_sub(1);
        std::iter::once(current).chain(previous).any(|period| self.of(ip, period)[..] == *token)
    }

    fn of(&self, ip: IpAddr, period: u64) -> [u8; TOKEN_LEN] {
        let hash = Sha1::new().chain_update(self.secret).chain_update(period.to_be_bytes());
        let hash: [u8; 20] = match ip {
            IpAddr::V4(v4) => hash.chain_update(v4.octets()),
            IpAddr::V6(v6) => hash.chain_update(v6.octets()),
        }
        .finalize()
        .into();
        std::array::from_fn(|i| hash[i])
    }
}

/// Which of the periods between rotations this is.
fn period(now: Timestamp) -> u64 {
    now.since(Timestamp::ZERO).as_secs() / ROTATION.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn tokens(seed: u64) -> Tokens {
        Tokens::new(&mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn a_token_is_good_for_five_to_ten_minutes() {
        let tokens = tokens(1);
        let token = tokens.give(IP, at(299));
        assert!(tokens.accepts(&token, IP, at(299)));
        assert!(tokens.accepts(&token, IP, at(599)));
        assert!(!tokens.accepts(&token, IP, at(600)));
    }

    #[test]
    fn a_token_is_of_no_use_from_elsewhere() {
        let token = tokens(1).give(IP, at(0));
        assert!(!tokens(1).accepts(&token, "192.0.2.2".parse().unwrap(), at(0)));
        assert!(!tokens(1).accepts(&token, "2001:db8::1".parse().unwrap(), at(0)));
    }

    #[test]
    fn other_nodes_have_other_tokens() {
        assert!(!tokens(2).accepts(&tokens(1).give(IP, at(0)), IP, at(0)));
    }

    #[test]
    fn a_part_of_a_token_is_none() {
        let tokens = tokens(1);
        let token = tokens.give(IP, at(0));
        assert!(!tokens.accepts(&token[..7], IP, at(0)));
        assert!(!tokens.accepts(&[], IP, at(0)));
        assert!(!tokens.accepts(&[&token[..], &[0]].concat(), IP, at(0)));
    }
}
