//! Any bytes are bencode that can be walked, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::bencode::{DictWriter, Limits, ListWriter, Value};

/// Writes what the views show. The depth is bounded by the scanner.
fn rewritten(value: Value<'_>) -> Vec<u8> {
    if let Some(dict) = value.as_dict() {
        let mut out = DictWriter::new();
        for (key, value) in dict.iter() {
            assert_eq!(dict.get(key), Some(value));
            out.raw(key, rewritten(value));
        }
        return out.finish();
    }
    let mut out = ListWriter::new();
    if let Some(list) = value.as_list() {
        for item in list {
            out.raw(&rewritten(item));
        }
        return out.finish();
    }
    assert!(value.as_int().is_some() != value.as_bytes().is_some());
    value.raw().to_vec()
}

fuzz_target!(|data: &[u8]| {
    if let Ok((value, rest)) = Value::parse_prefix(data, Limits::MESSAGE) {
        assert_eq!(value.raw().len() + rest.len(), data.len());
        // A canonical writer moves keys and changes nothing else.
        assert_eq!(rewritten(value).len(), value.raw().len());
    }
});
