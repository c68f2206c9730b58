//! Writes datagrams. The keys of each dictionary are written in their order; nothing is built that
//! would have to be sorted first.

use super::compact::{write_addr, write_contacts};
use super::{Answer, Body, KrpcError, Message, Method, PutItem, Query, Samples, Signed, Want};
use crate::proto::dht::id::Contact;

/// Who we are, in the customary four bytes: our client id (BEP 20) and the version.
const VERSION: [u8; 4] = *b"PF\x01\x00";

pub(super) fn message(message: &Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.push(b'd');
    match &message.body {
        Body::Query(query) => arguments(&mut out, query),
        Body::Error(error) => refusal(&mut out, error),
        Body::Answer(_) => {}
    }
    if let Some(ip) = &message.ip {
        let mut addr = Vec::with_capacity(18);
        write_addr(&mut addr, ip);
        text(&mut out, b"ip", &addr);
    }
    match &message.body {
        Body::Query(query) => text(&mut out, b"q", name(&query.method)),
        Body::Answer(answer) => values(&mut out, answer),
        Body::Error(_) => {}
    }
    if message.read_only {
        int(&mut out, b"ro", 1);
    }
    text(&mut out, b"t", &message.transaction);
    text(&mut out, b"v", &VERSION);
    let kind = match &message.body {
        Body::Query(_) => b"q",
        Body::Answer(_) => b"r",
        Body::Error(_) => b"e",
    };
    text(&mut out, b"y", kind);
    out.push(b'e');
    out
}

const fn name(method: &Method) -> &'static [u8] {
    match method {
        Method::Ping => b"ping",
        Method::FindNode { .. } => b"find_node",
        Method::GetPeers { .. } => b"get_peers",
        Method::AnnouncePeer { .. } => b"announce_peer",
        Method::Get { .. } => b"get",
        Method::Put { .. } => b"put",
        Method::SampleInfohashes { .. } => b"sample_infohashes",
    }
}

fn arguments(out: &mut Vec<u8>, query: &Query) {
    out.extend_from_slice(b"1:ad");
    let id = query.id.as_bytes();
    match &query.method {
        Method::Ping => text(out, b"id", id),
        Method::FindNode { target, want: families }
        | Method::SampleInfohashes { target, want: families } => {
            text(out, b"id", id);
            text(out, b"target", target.as_bytes());
            want(out, *families);
        }
        Method::GetPeers { info_hash, want: families, no_seed, scrape } => {
            text(out, b"id", id);
            text(out, b"info_hash", info_hash.as_bytes());
            flag(out, b"noseed", *no_seed);
            flag(out, b"scrape", *scrape);
            want(out, *families);
        }
        Method::AnnouncePeer { info_hash, port, implied_port, seed, token } => {
            text(out, b"id", id);
            flag(out, b"implied_port", *implied_port);
            text(out, b"info_hash", info_hash.as_bytes());
            int(out, b"port", i64::from(*port));
            flag(out, b"seed", *seed);
            text(out, b"token", token);
        }
        Method::Get { target, seq, want: families } => {
            text(out, b"id", id);
            optional(out, b"seq", *seq);
            text(out, b"target", target.as_bytes());
            want(out, *families);
        }
        Method::Put { item, token } => put(out, id, item, token),
    }
    out.push(b'e');
}

fn put(out: &mut Vec<u8>, id: &[u8], item: &PutItem, token: &[u8]) {
    optional(out, b"cas", item.cas);
    text(out, b"id", id);
    if let Some(Signed { key, signature, seq, salt }) = &item.mutable {
        text(out, b"k", key);
        if !salt.is_empty() {
            text(out, b"salt", salt);
        }
        int(out, b"seq", *seq);
        text(out, b"sig", signature);
    }
    text(out, b"token", token);
    raw(out, b"v", &item.value);
}

fn values(out: &mut Vec<u8>, answer: &Answer) {
    out.extend_from_slice(b"1:rd");
    if let Some(filters) = &answer.scrape {
        text(out, b"BFpe", filters.1.as_bytes());
        text(out, b"BFsd", filters.0.as_bytes());
    }
    text(out, b"id", answer.id.as_bytes());
    if let Some(samples) = &answer.samples {
        int(out, b"interval", i64::from(samples.interval));
    }
    if let Some(signed) = &answer.signed {
        text(out, b"k", &signed.key);
    }
    nodes(out, b"nodes", answer.nodes.as_deref());
    nodes(out, b"nodes6", answer.nodes6.as_deref());
    if let Some(samples) = &answer.samples {
        sampled(out, samples);
    }
    optional(out, b"seq", answer.signed.as_ref().map(|signed| signed.seq).or(answer.seq));
    if let Some(signed) = &answer.signed {
        text(out, b"sig", &signed.signature);
    }
    if let Some(token) = &answer.token {
        text(out, b"token", token);
    }
    if let Some(value) = &answer.value {
        raw(out, b"v", value);
    }
    peers(out, answer);
    out.push(b'e');
}

fn nodes(out: &mut Vec<u8>, key: &[u8], contacts: Option<&[Contact]>) {
    let Some(contacts) = contacts else { return };
    let mut list = Vec::with_capacity(contacts.len() * 38);
    write_contacts(&mut list, contacts);
    text(out, key, &list);
}

fn sampled(out: &mut Vec<u8>, samples: &Samples) {
    int(out, b"num", i64::try_from(samples.count).unwrap_or(i64::MAX));
    let hashes: Vec<u8> = samples.hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
    text(out, b"samples", &hashes);
}

fn peers(out: &mut Vec<u8>, answer: &Answer) {
    if answer.values.is_empty() {
        return;
    }
    out.extend_from_slice(b"6:valuesl");
    let mut addr = Vec::with_capacity(18);
    for peer in &answer.values {
        addr.clear();
        write_addr(&mut addr, peer);
        string(out, &addr);
    }
    out.push(b'e');
}

fn refusal(out: &mut Vec<u8>, error: &KrpcError) {
    out.extend_from_slice(b"1:el");
    number(out, error.code);
    string(out, error.text.as_bytes());
    out.push(b'e');
}

fn want(out: &mut Vec<u8>, families: Option<Want>) {
    let Some(Want { v4, v6 }) = families else { return };
    out.extend_from_slice(b"4:wantl");
    out.extend_from_slice(if v4 { b"2:n4" } else { b"" });
    out.extend_from_slice(if v6 { b"2:n6" } else { b"" });
    out.push(b'e');
}

fn flag(out: &mut Vec<u8>, key: &[u8], set: bool) {
    if set {
        int(out, key, 1);
    }
}

fn optional(out: &mut Vec<u8>, key: &[u8], value: Option<i64>) {
    if let Some(value) = value {
        int(out, key, value);
    }
}

fn int(out: &mut Vec<u8>, key: &[u8], value: i64) {
    string(out, key);
    number(out, value);
}

fn text(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    string(out, key);
    string(out, value);
}

fn raw(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    string(out, key);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(format!("i{value}e").as_bytes());
}

fn string(out: &mut Vec<u8>, value: &[u8]) {
    let mut place = 1;
    while value.len() / place >= 10 {
        place *= 10;
    }
    while place > 0 {
        out.push(b'0' + (value.len() / place % 10) as u8);
        place /= 10;
    }
    out.push(b':');
    out.extend_from_slice(value);
}
