//! Items that others keep with us: any value of up to 1,000 bytes, under its hash or under a key
//! whose owner may change it (BEP 44).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use sha1::{Digest, Sha1};

use super::id::{NodeId, is_local};
use super::krpc::{KrpcError, MAX_SALT, MAX_VALUE, PutItem, Signed};
use crate::proto::swarm::site;
use crate::proto::time::Timestamp;

/// How long an item is kept without being put again (BEP 44, "Expiration").
pub const ITEM_LIFETIME: Duration = Duration::from_secs(2 * 3600);

/// Items kept: some 5 MB.
pub const MAX_ITEMS: usize = 4_096;

/// Items that one site (an IPv4 address or IPv6 /64) can have here.
pub const MAX_ITEMS_OF_SITE: u32 = 64;

/// An item: a value, and what makes it mutable if it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The value, bencoded.
    pub value: Vec<u8>,
    /// The key, signature, number and salt of a mutable item.
    pub signed: Option<Signed>,
}

impl Item {
    /// The item under the hash of its value, which is bencode.
    pub const fn immutable(value: Vec<u8>) -> Self {
        Self { value, signed: None }
    }

    /// A mutable item, signed with the ed25519 key that `secret` is the seed of.
    pub fn mutable(secret: &[u8; 32], salt: &[u8], seq: i64, value: Vec<u8>) -> Self {
        let key = SigningKey::from_bytes(secret);
        let signature = key.sign(&what_is_signed(salt, seq, &value)).to_bytes();
        let key = key.verifying_key().to_bytes();
        let signed = Signed { key, signature, seq, salt: salt.to_vec() };
        Self { value, signed: Some(signed) }
    }

    /// Where it belongs.
    pub fn target(&self) -> NodeId {
        match &self.signed {
            None => immutable_target(&self.value),
            Some(signed) => mutable_target(&signed.key, &signed.salt),
        }
    }

    /// Whether it is short enough, and its signature what it should be.
    ///
    /// # Errors
    /// What a node answers to whoever wants to put such an item.
    pub fn check(&self) -> Result<(), KrpcError> {
        if self.value.len() > MAX_VALUE {
            return Err(KrpcError::new(KrpcError::TOO_BIG, "the value is too big"));
        }
        let Some(signed) = &self.signed else { return Ok(()) };
        if signed.salt.len() > MAX_SALT {
            return Err(KrpcError::new(KrpcError::SALT_TOO_BIG, "the salt is too big"));
        }
        let key = VerifyingKey::from_bytes(&signed.key);
        let bytes = what_is_signed(&signed.salt, signed.seq, &self.value);
        let signature = Signature::from_bytes(&signed.signature);
        key.and_then(|key| key.verify(&bytes, &signature))
            .map_err(|_| KrpcError::new(KrpcError::BAD_SIGNATURE, "the signature is wrong"))
    }
}

/// Where the item with this bencoded value belongs.
pub fn immutable_target(value: &[u8]) -> NodeId {
    NodeId::new(Sha1::digest(value).into())
}

/// Where the item of this public key and salt belongs.
pub fn mutable_target(key: &[u8; 32], salt: &[u8]) -> NodeId {
    NodeId::new(Sha1::new().chain_update(key).chain_update(salt).finalize().into())
}

/// The bytes that are signed (BEP 44, "Signature Verification").
fn what_is_signed(salt: &[u8], seq: i64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + salt.len() + 48);
    if !salt.is_empty() {
        out.extend_from_slice(format!("4:salt{}:", salt.len()).as_bytes());
        out.extend_from_slice(salt);
    }
    out.extend_from_slice(format!("3:seqi{seq}e1:v").as_bytes());
    out.extend_from_slice(value);
    out
}

#[derive(Clone, Debug)]
struct Kept {
    item: Item,
    put: Timestamp,
    /// The site that put it first, of whose share it is.
    site: IpAddr,
}

/// The items of others.
#[derive(Clone, Debug, Default)]
pub struct Items {
    items: BTreeMap<NodeId, Kept>,
    by_age: BTreeSet<(Timestamp, NodeId)>,
    sites: BTreeMap<IpAddr, u32>,
}

impl Items {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// The item that belongs at `target`.
    pub fn get(&mut self, target: &NodeId, now: Timestamp) -> Option<&Item> {
        self.expire(now);
        self.items.get(target).map(|kept| &kept.item)
    }

    /// Keeps what `from` puts, whose token has been checked.
    ///
    /// # Errors
    /// What to answer when it is not kept: 205, 206 or 207 when it is no item, 301 when there is
    /// another than expected, 302 when there is a newer one, 202 when there is no room.
    pub fn put(&mut self, put: PutItem, from: IpAddr, now: Timestamp) -> Result<(), KrpcError> {
        self.expire(now);
        let item = Item { value: put.value, signed: put.mutable };
        let target = item.target();
        match self.items.get(&target) {
            Some(kept) => {
                replaces(&kept.item, &item, put.cas)?;
                if kept.item != item {
                    item.check()?;
                }
                self.renew(target, item, now);
            }
            None => {
                self.has_room(from)?;
                item.check()?;
                self.insert(target, item, from, now);
            }
        }
        Ok(())
    }

    fn has_room(&self, from: IpAddr) -> Result<(), KrpcError> {
        let full = self.items.len() >= MAX_ITEMS;
        let share = self.sites.get(&site(from)).is_some_and(|n| *n >= MAX_ITEMS_OF_SITE);
        if full || share && !is_local(from) {
            return Err(KrpcError::new(KrpcError::SERVER, "no room for more items"));
        }
        Ok(())
    }

    fn insert(&mut self, target: NodeId, item: Item, from: IpAddr, now: Timestamp) {
        let site = site(from);
        *self.sites.entry(site).or_default() += 1;
        self.by_age.insert((now, target));
        self.items.insert(target, Kept { item, put: now, site });
    }

    fn renew(&mut self, target: NodeId, item: Item, now: Timestamp) {
        if let Some(kept) = self.items.get_mut(&target) {
            self.by_age.remove(&(kept.put, target));
            self.by_age.insert((now, target));
            (kept.item, kept.put) = (item, now);
        }
    }

    fn expire(&mut self, now: Timestamp) {
        while let Some((put, target)) = self.by_age.first().copied() {
            if now.since(put) < ITEM_LIFETIME {
                break;
            }
            self.by_age.pop_first();
            let Some(kept) = self.items.remove(&target) else { continue };
            if let Some(n) = self.sites.get_mut(&kept.site) {
                *n -= 1;
                if *n == 0 {
                    self.sites.remove(&kept.site);
                }
            }
        }
    }
}

/// Whether `new` may take the place of `old`. A value never changes without a greater number.
pub(super) fn replaces(old: &Item, new: &Item, cas: Option<i64>) -> Result<(), KrpcError> {
    let (Some(old_signed), Some(new_signed)) = (&old.signed, &new.signed) else { return Ok(()) };
    if cas.is_some_and(|cas| cas != old_signed.seq) {
        return Err(KrpcError::new(KrpcError::CAS_MISMATCH, "not the expected number"));
    }
    let same = old_signed.seq == new_signed.seq && old.value == new.value;
    if new_signed.seq <= old_signed.seq && !same {
        return Err(KrpcError::new(KrpcError::SEQ_TOO_LOW, "there is a newer item"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const SECRET: [u8; 32] = [7; 32];

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
    }

    /// The tests of BEP 44.
    fn vector(salt: &[u8], signature: &str) -> Item {
        let key = bytes("77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548");
        let signed = Signed { key, signature: bytes(signature), seq: 1, salt: salt.to_vec() };
        Item { value: b"12:Hello World!".to_vec(), signed: Some(signed) }
    }

    const PLAIN: &str = "305ac8aeb6c9c151fa120f120ea2cfb923564e11552d06a5d856091e5e853cff\
                         1260d3f39e4999684aa92eb73ffd136e6f4f3ecbfda0ce53a1608ecd7ae21f01";
    const SALTED: &str = "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17d\
                          df9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08";

    #[test]
    fn the_vectors_of_bep_44_come_out() {
        for (item, target) in [
            (vector(b"", PLAIN), "4a533d47ec9c7d95b1ad75f576cffc641853b750"),
            (vector(b"foobar", SALTED), "411eba73b6f087ca51a3795d9c8c938d365e32c1"),
            (
                Item::immutable(b"12:Hello World!".to_vec()),
                "e5f96f6f38320f0f33959cb4d3d656452117aadb",
            ),
        ] {
            assert_eq!(item.check(), Ok(()));
            assert_eq!(item.target().to_string(), target);
        }
        assert!(vector(b"", SALTED).check().is_err());
    }

    fn put_of(item: Item, cas: Option<i64>) -> PutItem {
        PutItem { value: item.value, mutable: item.signed, cas }
    }

    fn mutable(seq: i64, value: &str) -> Item {
        let value = format!("{}:{value}", value.len()).into_bytes();
        Item::mutable(&SECRET, b"salt", seq, value)
    }

    fn code(result: Result<(), KrpcError>) -> i64 {
        result.map_or_else(|error| error.code, |()| 0)
    }

    /// Puts items one after the other and gives the code of each refusal, 0 without one.
    fn put_all(puts: impl IntoIterator<Item = (Item, Option<i64>)>) -> (Items, Vec<i64>) {
        let mut items = Items::default();
        let codes =
            puts.into_iter().map(|(item, cas)| code(items.put(put_of(item, cas), FROM, at(0))));
        let codes = codes.collect();
        (items, codes)
    }

    #[test]
    fn only_a_greater_number_changes_a_value() {
        let (mut items, codes) = put_all([
            (mutable(5, "a"), None),
            (mutable(5, "a"), None),
            (mutable(5, "b"), None),
            (mutable(4, "a"), None),
            (mutable(6, "c"), None),
        ]);
        assert_eq!(codes, [0, 0, 302, 302, 0]);
        let target = mutable(6, "c").target();
        assert_eq!(items.get(&target, at(0)), Some(&mutable(6, "c")));
    }

    #[test]
    fn compare_and_swap_changes_what_was_expected_only() {
        let (_, codes) = put_all([
            (mutable(5, "a"), Some(99)),
            (mutable(7, "b"), Some(4)),
            (mutable(7, "b"), Some(5)),
            (mutable(7, "b"), Some(5)),
        ]);
        assert_eq!(codes, [0, 301, 0, 301]);
    }

    #[test]
    fn what_its_owner_has_not_signed_is_refused() {
        let forged = |mut item: Item| {
            item.value = b"1:z".to_vec();
            item
        };
        let (items, codes) = put_all([
            (forged(mutable(1, "a")), None),
            (mutable(1, "a"), None),
            (forged(mutable(2, "a")), None),
        ]);
        assert_eq!(codes, [206, 0, 206]);
        assert_eq!(items.count(), 1);
    }

    #[test]
    fn values_and_salts_have_a_length() {
        let text = |n: usize| [format!("{n}:").into_bytes(), vec![b'x'; n]].concat();
        let salted = Item::mutable(&SECRET, &[1; 65], 1, text(1));
        let (_, codes) = put_all([
            (Item::immutable(text(996)), None),
            (Item::immutable(text(997)), None),
            (salted, None),
        ]);
        assert_eq!(codes, [0, 205, 207]);
    }

    #[test]
    fn an_item_is_kept_for_two_hours_after_it_was_put_last() {
        let (mut items, _) = put_all([(mutable(1, "a"), None), (mutable(1, "b"), None)]);
        let target = mutable(1, "a").target();
        items.put(put_of(mutable(1, "a"), None), FROM, at(3_600)).unwrap();
        assert!(items.get(&target, at(3_600 + 7_199)).is_some());
        assert!(items.get(&target, at(3_600 + 7_200)).is_none());
        assert!(items.sites.is_empty() && items.by_age.is_empty());
    }

    #[test]
    fn one_site_has_only_its_share_and_all_have_a_bound() {
        let mut items = Items::default();
        let mut put = |n: usize, from: u32| {
            let value = format!("i{n}e").into_bytes();
            let from = IpAddr::V4(from.into());
            code(items.put(put_of(Item::immutable(value), None), from, at(0)))
        };
        let share = MAX_ITEMS_OF_SITE as usize;
        assert!((0..share).all(|n| put(n, 0xc000_0201) == 0));
        assert_eq!(put(share, 0xc000_0201), 202);
        assert!((share..MAX_ITEMS).all(|n| put(n, 0xc633_6400 + (n / share) as u32) == 0));
        assert_eq!(put(MAX_ITEMS, 0xcb00_7101), 202);
    }

    proptest! {
        /// Whatever is changed of a signed item, it is signed no more.
        #[test]
        fn a_signature_covers_salt_number_and_value(salt: [u8; 3], seq in 0i64.., flip in 0usize..4) {
            let mut item = Item::mutable(&SECRET, &salt, seq, b"3:abc".to_vec());
            prop_assert_eq!(item.check(), Ok(()));
            let signed = item.signed.as_mut().unwrap();
            match flip {
                0 => signed.salt.push(0),
                1 => signed.seq ^= 1,
                2 => signed.signature[5] ^= 1,
                _ => item.value = b"3:abd".to_vec(),
            }
            prop_assert!(item.check().is_err());
        }
    }
}
