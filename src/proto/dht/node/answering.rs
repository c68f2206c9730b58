//! What others ask us.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Dht, family_of};
use crate::proto::dht::id::{Contact, K, NodeId};
use crate::proto::dht::krpc::{
    Answer, Body, KrpcError, MAX_ANSWER, MAX_ITEM_ANSWER, Message, Method, PutItem, Query, Samples,
    Want,
};
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// Peers in one answer. More would make us worth being used for a flood, and nobody connects to as
/// many at once.
const MAX_PEERS_ANSWER: usize = 50;

/// Torrents in one sample, and how long the same ones are given out (BEP 51).
const SAMPLE: usize = 20;
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// What an answer takes without lists, in bytes: keys, id, token, the longest transaction, an IPv6
/// address and the version.
const FRAME: usize = 140;

/// What two filters take with their keys, in bytes.
const FILTERS: usize = 532;

type Result<T> = std::result::Result<T, KrpcError>;

impl Dht {
    /// A question has come.
    pub(super) fn asked(
        &mut self,
        from: SocketAddr,
        transaction: Vec<u8>,
        read_only: bool,
        query: Query,
        now: Timestamp,
    ) {
        let index = family_of(&from);
        let Some(own) = self.family(index).map(|family| family.id) else { return };
        if query.id == own {
            self.traffic.dropped += 1;
            return;
        }
        if !self.lets_in(from, now) {
            return;
        }
        let body = match self.answer(from, own, query.method, now) {
            Ok(answer) => Body::Answer(Box::new(answer)),
            Err(error) => Body::Error(error),
        };
        self.reply(from, transaction, body);
        if !read_only {
            self.heard_of(Contact { id: query.id, addr: from }, now);
        }
    }

    /// A question has come that makes no sense.
    pub(super) fn asked_nonsense(
        &mut self,
        from: SocketAddr,
        transaction: Vec<u8>,
        error: KrpcError,
        now: Timestamp,
    ) {
        if self.lets_in(from, now) {
            self.reply(from, transaction, Body::Error(error));
        }
    }

    /// Whether a question is to be answered. Even one that is not shows that we are reached.
    fn lets_in(&mut self, from: SocketAddr, now: Timestamp) -> bool {
        self.traffic.asked += 1;
        let allowed = match self.reach.knows(from.ip()) {
            true => self.in_limit.take(from.ip(), now),
            false => self.in_limit.take_of_stranger(from.ip(), now),
        };
        if !allowed {
            self.traffic.limited += 1;
            return false;
        }
        self.reach.asked_by(from.ip(), now);
        !self.is_read_only()
    }

    fn reply(&mut self, to: SocketAddr, transaction: Vec<u8>, body: Body) {
        let mut message = Message { transaction, read_only: false, ip: Some(to), body };
        let mut datagram = message.encode();
        while shorten(&mut message.body, datagram.len()) {
            datagram = message.encode();
        }
        self.send(to, datagram);
    }

    fn answer(
        &mut self,
        from: SocketAddr,
        own: NodeId,
        method: Method,
        now: Timestamp,
    ) -> Result<Answer> {
        let mut answer = Answer::new(own);
        match method {
            Method::Ping => {}
            Method::FindNode { target, want } => self.nodes(&mut answer, from, &target, want, now),
            Method::GetPeers { info_hash, want, no_seed, scrape } => {
                // Filters leave no room for nodes of the other family (BEP 33).
                let want = want.filter(|_| !scrape);
                self.nodes(&mut answer, from, &info_hash.into(), want, now);
                self.known_peers(&mut answer, from, info_hash, no_seed, scrape, now);
            }
            Method::AnnouncePeer { info_hash, port, implied_port, seed, token } => {
                self.check_token(&token, from, now)?;
                let port = if implied_port { from.port() } else { port };
                let peer = SocketAddr::new(from.ip(), port);
                self.peers
                    .announce(info_hash, peer, seed, &mut self.rng, now)
                    .map_err(|full| KrpcError::new(KrpcError::SERVER, &full.to_string()))?;
            }
            Method::Get { target, seq, want } => {
                self.nodes(&mut answer, from, &target, want, now);
                self.known_item(&mut answer, from, &target, seq, now);
            }
            Method::Put { item, token } => self.keep(item, &token, from, now)?,
            Method::SampleInfohashes { target, want } => {
                self.nodes(&mut answer, from, &target, want, now);
                answer.samples = Some(self.sampled(now));
            }
        }
        Ok(answer)
    }

    /// The closest nodes, of the families that are wanted: without a wish, of that by which was
    /// asked (BEP 32).
    fn nodes(
        &self,
        answer: &mut Answer,
        from: SocketAddr,
        target: &NodeId,
        want: Option<Want>,
        now: Timestamp,
    ) {
        let want = want.unwrap_or(Want { v4: from.is_ipv4(), v6: from.is_ipv6() });
        let [v4, v6] = &self.families;
        let closest = |family: &Option<super::Family>| {
            let mut nodes = family.as_ref()?.table.closest(target, K, now);
            nodes.retain(|node| self.may_name(from.ip(), node.addr.ip()) && node.addr != from);
            Some(nodes)
        };
        answer.nodes = want.v4.then(|| closest(v4)).flatten();
        answer.nodes6 = want.v6.then(|| closest(v6)).flatten();
    }

    fn known_peers(
        &mut self,
        answer: &mut Answer,
        from: SocketAddr,
        info_hash: InfoHash,
        no_seed: bool,
        scrape: bool,
        now: Timestamp,
    ) {
        answer.token = Some(self.tokens.give(from.ip(), now).to_vec());
        if scrape {
            answer.scrape = self.peers.blooms(info_hash, now).map(Box::new);
        }
        let list = |nodes: &Option<Vec<Contact>>, len| {
            nodes.as_ref().map_or(0, |nodes| 12 + len * nodes.len())
        };
        let filters = if answer.scrape.is_some() { FILTERS } else { 0 };
        let taken = FRAME + list(&answer.nodes, 26) + list(&answer.nodes6, 38) + filters;
        // A peer is a string of 6 or 18 bytes with its length.
        let entry = if from.is_ipv6() { 21 } else { 8 };
        let max = (MAX_ANSWER.saturating_sub(taken) / entry).min(MAX_PEERS_ANSWER);
        answer.values =
            self.peers.peers(info_hash, from.is_ipv6(), no_seed, max, &mut self.rng, now);
        let restrict = self.config.restrict;
        let local = crate::proto::dht::is_local;
        answer.values.retain(|p| !restrict || local(from.ip()) || !local(p.ip()));
    }

    fn known_item(
        &mut self,
        answer: &mut Answer,
        from: SocketAddr,
        target: &NodeId,
        newer_than: Option<i64>,
        now: Timestamp,
    ) {
        answer.token = Some(self.tokens.give(from.ip(), now).to_vec());
        let Some(item) = self.items.get(target, now) else { return };
        answer.seq = item.signed.as_ref().map(|signed| signed.seq);
        let old = answer.seq.zip(newer_than).is_some_and(|(seq, known)| seq <= known);
        if !old {
            answer.value = Some(item.value.clone());
            answer.signed = item.signed.clone();
        }
    }

    fn keep(
        &mut self,
        item: PutItem,
        token: &[u8],
        from: SocketAddr,
        now: Timestamp,
    ) -> Result<()> {
        self.check_token(token, from, now)?;
        self.items.put(item, from.ip(), now)
    }

    fn check_token(&self, token: &[u8], from: SocketAddr, now: Timestamp) -> Result<()> {
        match self.tokens.accepts(token, from.ip(), now) {
            true => Ok(()),
            false => Err(KrpcError::new(KrpcError::PROTOCOL, "bad token")),
        }
    }

    fn sampled(&mut self, now: Timestamp) -> Samples {
        let fresh = |(taken, _): &(Timestamp, _)| now.since(*taken) < SAMPLE_INTERVAL;
        let old = self.samples.take().filter(fresh);
        let (sample, count) = self.peers.sample(SAMPLE, &mut self.rng, now);
        let (taken, hashes) = old.unwrap_or((now, sample));
        self.samples = Some((taken, hashes.clone()));
        let left = SAMPLE_INTERVAL.saturating_sub(now.since(taken)).as_secs();
        Samples { hashes, count: count as u64, interval: left as u32 }
    }
}

/// Takes nodes or peers out of an answer that is too long as it is; whether there were any.
fn shorten(body: &mut Body, len: usize) -> bool {
    let Body::Answer(answer) = body else { return false };
    let max = if answer.value.is_some() { MAX_ITEM_ANSWER } else { MAX_ANSWER };
    let Some(excess @ 1..) = len.checked_sub(max) else { return false };
    for (nodes, len) in [(&mut answer.nodes6, 38), (&mut answer.nodes, 26)] {
        if let Some(nodes) = nodes.as_mut().filter(|nodes| !nodes.is_empty()) {
            nodes.truncate(nodes.len().saturating_sub(excess.div_ceil(len)));
            return true;
        }
    }
    let keep = answer.values.len().saturating_sub(excess.div_ceil(8));
    let shorter = keep < answer.values.len();
    answer.values.truncate(keep);
    shorter
}
