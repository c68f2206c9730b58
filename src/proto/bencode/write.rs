//! The canonical writer.

use std::collections::BTreeMap;

/// Writes a dictionary with its keys in order, as BEP 3 wants them.
#[derive(Clone, Debug, Default)]
pub struct DictWriter {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl DictWriter {
    /// An empty dictionary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number; a key that was there is replaced.
    pub fn int(&mut self, key: &[u8], value: i64) -> &mut Self {
        self.raw(key, format!("i{value}e").into_bytes())
    }

    /// Adds a string.
    pub fn bytes(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.raw(key, string(value))
    }

    /// Adds a value that is bencode already: a finished list or dictionary, or bytes as found.
    pub fn raw(&mut self, key: &[u8], value: impl Into<Vec<u8>>) -> &mut Self {
        self.entries.insert(key.to_vec(), value.into());
        self
    }

    /// The dictionary's bytes.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = vec![b'd'];
        for (key, value) in &self.entries {
            out.extend(string(key));
            out.extend_from_slice(value);
        }
        out.push(b'e');
        out
    }
}

/// Writes a list.
#[derive(Clone, Debug, Default)]
pub struct ListWriter {
    inside: Vec<u8>,
}

impl ListWriter {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// A list of strings.
    pub fn of_bytes<T: AsRef<[u8]>>(items: impl IntoIterator<Item = T>) -> Self {
        let mut list = Self::new();
        for item in items {
            list.bytes(item.as_ref());
        }
        list
    }

    /// Appends a number.
    pub fn int(&mut self, value: i64) -> &mut Self {
        self.raw(format!("i{value}e").as_bytes())
    }

    /// Appends a string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.raw(&string(value))
    }

    /// Appends a value that is bencode already.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.inside.extend_from_slice(value);
        self
    }

    /// The list's bytes.
    pub fn finish(&self) -> Vec<u8> {
        [b"l", &self.inside[..], b"e"].concat()
    }
}

fn string(value: &[u8]) -> Vec<u8> {
    let mut out = format!("{}:", value.len()).into_bytes();
    out.extend_from_slice(value);
    out
}
