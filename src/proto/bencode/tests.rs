use proptest::prelude::*;

use super::{BencodeError, Dict, DictWriter, Fault, Limits, ListWriter, Value};

fn parse(bytes: &[u8]) -> Result<Value<'_>, BencodeError> {
    Value::parse(bytes, Limits::MESSAGE)
}

fn fault(bytes: &[u8]) -> Option<Fault> {
    parse(bytes).err().map(|e| e.fault)
}

#[test]
fn each_kind_of_value_is_read() {
    assert_eq!(parse(b"i-42e").unwrap().as_int(), Some(-42));
    assert_eq!(parse(b"i-9223372036854775808e").unwrap().as_int(), Some(i64::MIN));
    assert_eq!(parse(b"0:").unwrap().as_bytes(), Some(&b""[..]));
    assert_eq!(parse(b"3:abc").unwrap().as_str(), Some("abc"));
    let list: Vec<_> = parse(b"li1e1:ale1:be").unwrap().as_list().unwrap().collect();
    assert_eq!(
        list.iter().map(|v| v.raw()).collect::<Vec<_>>(),
        [&b"i1e"[..], b"1:a", b"le", b"1:b"]
    );
    let dict = Dict::parse(b"d1:ad1:xi7ee1:bl1:yee", Limits::MESSAGE).unwrap();
    assert_eq!(dict.dict(b"a").unwrap().int(b"x"), Some(7));
    assert_eq!(dict.list(b"b").unwrap().next().unwrap().as_bytes(), Some(&b"y"[..]));
}

#[test]
fn a_value_of_another_kind_is_none() {
    let dict = Dict::parse(b"d1:ai1e1:b1:xe", Limits::MESSAGE).unwrap();
    assert_eq!((dict.bytes(b"a"), dict.int(b"b")), (None, None));
    assert!(dict.list(b"a").is_none() && dict.dict(b"b").is_none() && dict.get(b"c").is_none());
    assert!(Dict::parse(b"le", Limits::MESSAGE).is_err());
}

#[test]
fn the_span_of_a_value_is_its_bytes_as_found() {
    let dict = Dict::parse(b"d4:infod1:bi1e1:ai2ee1:z0:e", Limits::TORRENT).unwrap();
    assert_eq!(dict.get(b"info").unwrap().raw(), b"d1:bi1e1:ai2ee");
}

#[test]
fn numbers_have_one_form() {
    for bad in [
        &b"ie"[..],
        b"i-e",
        b"i-0e",
        b"i01e",
        b"i-01e",
        b"i+1e",
        b"i 1e",
        b"i1.0e",
        b"i--1e",
        b"i9223372036854775808e",
        b"i00000000000000000000000e",
        b"01:a",
        b"-1:a",
        b"i1:e",
    ] {
        let refused = fault(bad).is_some_and(|f| f != Fault::Truncated);
        assert!(refused, "{}", bad.escape_ascii());
    }
}

#[test]
fn what_is_cut_short_is_refused() {
    for bad in [&b""[..], b"i", b"i1", b"l", b"d", b"d1:a", b"d1:ai1e", b"3:ab", b"3", b"li1e"] {
        assert_eq!(fault(bad), Some(Fault::Truncated), "{}", bad.escape_ascii());
    }
}

#[test]
fn what_is_not_bencode_is_refused() {
    for bad in [&b"x"[..], b"e", b"di1e1:ae", b"dle1:ae", b"d1:ae", b"lxe", b"d1:aee"] {
        assert_eq!(fault(bad), Some(Fault::Unexpected), "{}", bad.escape_ascii());
    }
}

#[test]
fn keys_may_be_unsorted_but_not_repeated() {
    assert!(parse(b"d1:bi1e1:ai2ee").is_ok());
    assert_eq!(fault(b"d1:ai1e1:ai2ee"), Some(Fault::DuplicateKey));
    assert_eq!(fault(b"d1:bi1e1:ai2e1:bi3ee"), Some(Fault::DuplicateKey));
    assert!(parse(b"d1:bd1:ai1ee1:ai2ee").is_ok());
    assert_eq!(fault(b"d1:bd1:zi1e1:ai1ee1:ai2e1:bi3ee"), Some(Fault::DuplicateKey));
}

#[test]
fn bytes_after_the_end_are_refused_or_given_back() {
    assert_eq!(parse(b"i1ei2e"), Err(BencodeError { fault: Fault::Trailing, at: 3 }));
    let (header, payload) = Dict::parse_prefix(b"d1:ai1eeDATA", Limits::MESSAGE).unwrap();
    assert_eq!((header.int(b"a"), payload), (Some(1), &b"DATA"[..]));
}

#[test]
fn depth_and_size_are_bounded() {
    let nested = |n: usize| ["l".repeat(n), "e".repeat(n)].concat().into_bytes();
    assert!(parse(&nested(16)).is_ok());
    assert_eq!(fault(&nested(17)), Some(Fault::TooDeep));
    assert_eq!(fault(&b"l".repeat(60_000)), Some(Fault::TooDeep));
    let limits = Limits { depth: 1, size: 5 };
    assert!(Value::parse(b"3:abc", limits).is_ok());
    assert_eq!(Value::parse(b"4:abcd", limits).unwrap_err().fault, Fault::TooLong);
    assert_eq!(Value::parse_prefix(b"4:abcd", limits).unwrap_err().fault, Fault::TooLong);
    assert_eq!(fault(b"9223372036854775807:a"), Some(Fault::Truncated));
}

#[test]
fn the_writer_sorts_keys() {
    let list = ListWriter::of_bytes(["x", "yy"]).int(-1).finish();
    let dict = DictWriter::new().raw(b"z", list).int(b"b", 1).bytes(b"a", b"v").finish();
    assert_eq!(dict, b"d1:a1:v1:bi1e1:zl1:x2:yyi-1eee");
}

/// Any value, written out.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|i| format!("i{i}e").into_bytes()),
        any::<Vec<u8>>().prop_map(|b| [format!("{}:", b.len()).into_bytes(), b].concat()),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(|items| {
                let mut list = ListWriter::new();
                for item in &items {
                    list.raw(item);
                }
                list.finish()
            }),
            prop::collection::btree_map(any::<Vec<u8>>(), inner, 0..8).prop_map(|entries| {
                let mut dict = DictWriter::new();
                for (k, v) in entries {
                    dict.raw(&k, v);
                }
                dict.finish()
            }),
        ]
    })
}

/// Writes what the views show, to compare with what was read.
fn rewritten(value: Value<'_>) -> Vec<u8> {
    if let Some(dict) = value.as_dict() {
        let mut out = DictWriter::new();
        for (k, v) in dict.iter() {
            out.raw(k, rewritten(v));
        }
        return out.finish();
    }
    if let Some(list) = value.as_list() {
        let mut out = ListWriter::new();
        for v in list {
            out.raw(&rewritten(v));
        }
        return out.finish();
    }
    let one = match (value.as_int(), value.as_bytes()) {
        (Some(i), None) => ListWriter::new().int(i).finish(),
        (None, Some(b)) => ListWriter::new().bytes(b).finish(),
        both => panic!("{both:?}"),
    };
    one[1..one.len() - 1].to_vec()
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(bytes in any_value()) {
        prop_assert_eq!(rewritten(Value::parse(&bytes, Limits::INFO).unwrap()), bytes);
    }

    #[test]
    fn every_strict_prefix_is_refused(bytes in any_value()) {
        for cut in 0..bytes.len() {
            prop_assert!(parse(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn mutated_values_are_walked_or_refused(mut bytes in any_value(), at: prop::sample::Index, to: u8) {
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok((value, rest)) = Value::parse_prefix(&bytes, Limits::INFO) {
            prop_assert_eq!(value.raw().len() + rest.len(), bytes.len());
            prop_assert_eq!(rewritten(value).len(), value.raw().len());
        }
    }

    #[test]
    fn text_of_bencode_letters_is_walked_or_refused(text in "[-0-9a-cdeil:]{0,40}") {
        if let Ok(value) = parse(text.as_bytes()) {
            prop_assert_eq!(rewritten(value).len(), text.len());
        }
    }
}

/// Any value, as another implementation has it.
fn their_value() -> impl Strategy<Value = serde_bencode::value::Value> {
    use serde_bencode::value::Value as Theirs;
    let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
    let leaf = prop_oneof![any::<i64>().prop_map(Theirs::Int), bytes().prop_map(Theirs::Bytes)];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Theirs::List),
            proptest::collection::hash_map(bytes(), inner, 0..8).prop_map(Theirs::Dict),
        ]
    })
}

fn as_theirs(value: Value<'_>) -> serde_bencode::value::Value {
    use serde_bencode::value::Value as Theirs;
    if let Some(int) = value.as_int() {
        Theirs::Int(int)
    } else if let Some(bytes) = value.as_bytes() {
        Theirs::Bytes(bytes.to_vec())
    } else if let Some(list) = value.as_list() {
        Theirs::List(list.map(as_theirs).collect())
    } else {
        let entries = value.as_dict().unwrap().iter();
        Theirs::Dict(entries.map(|(k, v)| (k.to_vec(), as_theirs(v))).collect())
    }
}

proptest! {
    #[test]
    fn what_serde_bencode_writes_is_read_as_it_was_meant(theirs in their_value()) {
        let bytes = serde_bencode::to_bytes(&theirs).unwrap();
        prop_assert_eq!(as_theirs(parse(&bytes).unwrap()), theirs);
    }
}
