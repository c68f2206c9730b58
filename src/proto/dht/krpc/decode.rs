//! Reads datagrams.

use std::net::SocketAddr;

use super::compact::{read_addr, read_contacts, usable};
use super::{
    Answer, Body, KrpcError, LIMITS, MAX_ERROR_TEXT, MAX_NODES, MAX_SALT, MAX_TOKEN,
    MAX_TRANSACTION, MAX_VALUE, MAX_VALUES, Message, Method, NoMessage, PutItem, Query, Samples,
    Signed, Want,
};
use crate::proto::bencode::{Dict, Value};
use crate::proto::dht::id::NodeId;
use crate::proto::dht::peer_store::{BLOOM_LEN, Bloom};
use crate::proto::ids::InfoHash;

/// The longest interval between samples, in seconds (BEP 51).
const MAX_INTERVAL: i64 = 21_600;

pub(super) fn message(datagram: &[u8]) -> Result<Message, NoMessage> {
    // Most of what is no message begins or ends differently, or is too long.
    if datagram.first() != Some(&b'd') || datagram.last() != Some(&b'e') {
        return Err(NoMessage::Garbage);
    }
    let dict = Dict::parse(datagram, LIMITS).map_err(|_| NoMessage::Garbage)?;
    let transaction = dict.bytes(b"t").filter(|t| (1..=MAX_TRANSACTION).contains(&t.len()));
    let transaction = transaction.ok_or(NoMessage::Garbage)?.to_vec();
    let body = match dict.bytes(b"y") {
        Some(b"q") => match query(dict) {
            Ok(query) => Body::Query(query),
            Err(error) => return Err(NoMessage::Refused { transaction, error }),
        },
        Some(b"r") => Body::Answer(Box::new(answer(dict).ok_or(NoMessage::Garbage)?)),
        Some(b"e") => Body::Error(error(dict).ok_or(NoMessage::Garbage)?),
        _ => return Err(NoMessage::Garbage),
    };
    let ip = dict.bytes(b"ip").and_then(read_addr);
    Ok(Message { transaction, read_only: dict.int(b"ro") == Some(1), ip, body })
}

fn malformed(what: &str) -> KrpcError {
    KrpcError::new(KrpcError::PROTOCOL, what)
}

fn query(dict: Dict<'_>) -> Result<Query, KrpcError> {
    let name = dict.bytes(b"q").ok_or_else(|| malformed("no method"))?;
    let args = dict.dict(b"a").ok_or_else(|| malformed("no arguments"))?;
    let id = id(args, b"id").ok_or_else(|| malformed("no id"))?;
    Ok(Query { id, method: method(name, args)? })
}

fn method(name: &[u8], args: Dict<'_>) -> Result<Method, KrpcError> {
    let target = || id(args, b"target").ok_or_else(|| malformed("no target"));
    let want = want(args);
    Ok(match name {
        b"ping" => Method::Ping,
        b"find_node" => Method::FindNode { target: target()?, want },
        b"get_peers" => {
            let (no_seed, scrape) = (flag(args, b"noseed"), flag(args, b"scrape"));
            Method::GetPeers { info_hash: info_hash(args)?, want, no_seed, scrape }
        }
        b"announce_peer" => announce(args)?,
        b"get" => Method::Get { target: target()?, seq: args.int(b"seq"), want },
        b"put" => Method::Put { item: put_item(args)?, token: token(args)? },
        b"sample_infohashes" => Method::SampleInfohashes { target: target()?, want },
        _ => return Err(KrpcError::new(KrpcError::UNKNOWN_METHOD, "unknown method")),
    })
}

fn announce(args: Dict<'_>) -> Result<Method, KrpcError> {
    let implied_port = flag(args, b"implied_port");
    let port = args.int(b"port").and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    if port == 0 && !implied_port {
        return Err(malformed("no port"));
    }
    let seed = args.int(b"seed") == Some(1);
    let (info_hash, token) = (info_hash(args)?, token(args)?);
    Ok(Method::AnnouncePeer { info_hash, port, implied_port, seed, token })
}

fn put_item(args: Dict<'_>) -> Result<PutItem, KrpcError> {
    let value = args.get(b"v").ok_or_else(|| malformed("no value"))?;
    if value.raw().len() > MAX_VALUE {
        return Err(KrpcError::new(KrpcError::TOO_BIG, "the value is too big"));
    }
    if !is_canonical(value) {
        return Err(malformed("the value is not in its one bencoded form"));
    }
    let salt = args.bytes(b"salt").unwrap_or_default();
    if salt.len() > MAX_SALT {
        return Err(KrpcError::new(KrpcError::SALT_TOO_BIG, "the salt is too big"));
    }
    let mutable = match args.get(b"k") {
        Some(_) => Some(signed(args, salt).ok_or_else(|| malformed("bad k, seq or sig"))?),
        None => None,
    };
    Ok(PutItem { value: value.raw().to_vec(), mutable, cas: args.int(b"cas") })
}

fn signed(dict: Dict<'_>, salt: &[u8]) -> Option<Signed> {
    let key = dict.bytes(b"k")?.try_into().ok()?;
    let signature = dict.bytes(b"sig")?.try_into().ok()?;
    let seq = dict.int(b"seq").filter(|seq| *seq >= 0)?;
    Some(Signed { key, signature, seq, salt: salt.to_vec() })
}

/// Whether the keys of all dictionaries are in order, so that there is one way to write the value
/// (BEP 44). The depth is bounded by the scanner.
pub(super) fn is_canonical(value: Value<'_>) -> bool {
    if let Some(dict) = value.as_dict() {
        return dict.iter().is_sorted_by(|(a, _), (b, _)| a < b)
            && dict.iter().all(|(_, value)| is_canonical(value));
    }
    value.as_list().is_none_or(|mut list| list.all(is_canonical))
}

fn answer(dict: Dict<'_>) -> Option<Answer> {
    let dict = dict.dict(b"r")?;
    let nodes = |key, v6| Some(read_contacts(dict.bytes(key)?, v6, MAX_NODES).collect::<Vec<_>>());
    let token = dict.bytes(b"token").filter(|t| (1..=MAX_TOKEN).contains(&t.len()));
    let value = dict.get(b"v").map(Value::raw).filter(|v| v.len() <= MAX_VALUE);
    Some(Answer {
        id: id(dict, b"id")?,
        token: token.map(<[u8]>::to_vec),
        nodes: nodes(b"nodes", false),
        nodes6: nodes(b"nodes6", true),
        values: values(dict),
        scrape: bloom(dict, b"BFsd").zip(bloom(dict, b"BFpe")).map(Box::new),
        value: value.map(<[u8]>::to_vec),
        signed: signed(dict, b""),
        seq: dict.int(b"seq"),
        samples: samples(dict),
    })
}

fn values(dict: Dict<'_>) -> Vec<SocketAddr> {
    let Some(list) = dict.list(b"values") else { return Vec::new() };
    let addr = |value: Value<'_>| read_addr(value.as_bytes()?);
    list.filter_map(addr).filter(usable).take(MAX_VALUES).collect()
}

fn bloom(dict: Dict<'_>, key: &[u8]) -> Option<Bloom> {
    let bytes: &[u8; BLOOM_LEN] = dict.bytes(key)?.try_into().ok()?;
    Some(Bloom::from_bytes(*bytes))
}

fn samples(dict: Dict<'_>) -> Option<Samples> {
    let bytes = dict.bytes(b"samples")?;
    let hashes = bytes.chunks_exact(20).filter_map(|hash| hash.try_into().ok());
    Some(Samples {
        hashes: hashes.map(InfoHash::new).collect(),
        count: dict.int(b"num").and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        interval: dict.int(b"interval").unwrap_or(0).clamp(0, MAX_INTERVAL) as u32,
    })
}

fn error(dict: Dict<'_>) -> Option<KrpcError> {
    let mut list = dict.list(b"e")?;
    let code = list.next()?.as_int()?;
    let text = list.next().and_then(Value::as_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let shown = text.chars().filter(|c| !c.is_control()).take(MAX_ERROR_TEXT);
    Some(KrpcError { code, text: shown.collect() })
}

fn id(dict: Dict<'_>, key: &[u8]) -> Option<NodeId> {
    dict.bytes(key)?.try_into().ok().map(NodeId::new)
}

fn info_hash(args: Dict<'_>) -> Result<InfoHash, KrpcError> {
    let hash = args.bytes(b"info_hash").and_then(|hash| hash.try_into().ok());
    hash.map(InfoHash::new).ok_or_else(|| malformed("no info hash"))
}

fn token(args: Dict<'_>) -> Result<Vec<u8>, KrpcError> {
    args.bytes(b"token").map(<[u8]>::to_vec).ok_or_else(|| malformed("no token"))
}

fn flag(args: Dict<'_>, key: &[u8]) -> bool {
    args.int(key).is_some_and(|value| value != 0)
}

fn want(args: Dict<'_>) -> Option<Want> {
    let list = args.list(b"want")?;
    let mut want = Want::default();
    for family in list {
        match family.as_bytes() {
            Some(b"n4") => want.v4 = true,
            Some(b"n6") => want.v6 = true,
            _ => {}
        }
    }
    Some(want)
}
