//! Views of scanned bencode.

use super::scan::{BencodeError, Fault, Limits, number, scan};

/// One value: exactly its bytes, which have been scanned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    raw: &'a [u8],
}

impl<'a> Value<'a> {
    /// Reads bytes that are one value and nothing else.
    pub fn parse(bytes: &'a [u8], limits: Limits) -> Result<Self, BencodeError> {
        if bytes.len() > limits.size {
            return Err(BencodeError { fault: Fault::TooLong, at: limits.size });
        }
        match Self::parse_prefix(bytes, limits)? {
            (value, []) => Ok(value),
            (value, _) => Err(BencodeError { fault: Fault::Trailing, at: value.raw.len() }),
        }
    }

    /// Reads the value that `bytes` begin with; gives it and the bytes after it.
    pub fn parse_prefix(bytes: &'a [u8], limits: Limits) -> Result<(Self, &'a [u8]), BencodeError> {
        let (raw, rest) = bytes.split_at(scan(bytes, limits)?);
        Ok((Self { raw }, rest))
    }

    /// The value's bytes as they were found.
    pub const fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// The number, if it is one.
    pub fn as_int(self) -> Option<i64> {
        let rest = self.raw.strip_prefix(b"i")?;
        number(rest, b'e', true).ok().map(|(value, _)| value)
    }

    /// The bytes of a string, if it is one.
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        let (_, prefix) = number(self.raw, b':', false).ok()?;
        self.raw.get(prefix..)
    }

    /// The text of a string, if it is one and UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// The values of a list, if it is one.
    pub fn as_list(self) -> Option<List<'a>> {
        self.raw.strip_prefix(b"l").map(|rest| List { rest })
    }

    /// The dictionary, if it is one.
    pub fn as_dict(self) -> Option<Dict<'a>> {
        self.raw.starts_with(b"d").then_some(Dict { value: self })
    }

    /// Takes the value off the front of the inside of a list or dictionary.
    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        if matches!(rest.first(), None | Some(b'e')) {
            return None;
        }
        let (raw, after) = rest.split_at_checked(length_of(rest)?)?;
        *rest = after;
        Some(Self { raw })
    }
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.raw.escape_ascii())
    }
}

/// The length of the scanned value that `bytes` begin with. Looks at no more than it needs to: what lies
/// before a key of a large dictionary is walked over each time that the key is looked for.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0usize, 0usize);
    loop {
        match bytes.get(at)? {
            b'i' => at += 1 + bytes.get(at..)?.iter().position(|byte| *byte == b'e')?,
            b'l' | b'd' => (at, depth) = (at + 1, depth + 1),
            b'e' => (at, depth) = (at + 1, depth.checked_sub(1)?),
            _ => at = string_end(bytes, at)?,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Where the scanned string ends that begins at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut length = 0usize;
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        match byte {
            b':' => return at.checked_add(length).filter(|end| *end <= bytes.len()),
            digit => {
                length = length.checked_mul(10)?.checked_add(digit.wrapping_sub(b'0').into())?;
            }
        }
    }
}

/// A dictionary. Looking a key up walks over the entries before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dict<'a> {
    value: Value<'a>,
}

impl<'a> Dict<'a> {
    /// Reads bytes that are one dictionary and nothing else.
    pub fn parse(bytes: &'a [u8], limits: Limits) -> Result<Self, BencodeError> {
        Value::parse(bytes, limits)?.as_dict().ok_or(NOT_A_DICT)
    }

    /// Reads the dictionary that `bytes` begin with; gives it and the bytes after it (a piece of
    /// metadata follows its header so, BEP 9).
    pub fn parse_prefix(bytes: &'a [u8], limits: Limits) -> Result<(Self, &'a [u8]), BencodeError> {
        let (value, rest) = Value::parse_prefix(bytes, limits)?;
        Ok((value.as_dict().ok_or(NOT_A_DICT)?, rest))
    }

    /// The dictionary's bytes as they were found.
    pub const fn raw(self) -> &'a [u8] {
        self.value.raw
    }

    /// All entries, in the order of the bytes.
    pub fn iter(self) -> Entries<'a> {
        Entries { rest: self.value.raw.get(1..).unwrap_or_default() }
    }

    /// The value of a key.
    pub fn get(self, key: &[u8]) -> Option<Value<'a>> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// The number with this key; `None` also when it is something else.
    pub fn int(self, key: &[u8]) -> Option<i64> {
        self.get(key)?.as_int()
    }

    /// The bytes of the string with this key; `None` also when it is something else.
    pub fn bytes(self, key: &[u8]) -> Option<&'a [u8]> {
        self.get(key)?.as_bytes()
    }

    /// The text of the string with this key; `None` also when it is something else.
    pub fn str(self, key: &[u8]) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// The list with this key; `None` also when it is something else.
    pub fn list(self, key: &[u8]) -> Option<List<'a>> {
        self.get(key)?.as_list()
    }

    /// The dictionary with this key; `None` also when it is something else.
    pub fn dict(self, key: &[u8]) -> Option<Dict<'a>> {
        self.get(key)?.as_dict()
    }
}

/// Something else where a dictionary has to be.
const NOT_A_DICT: BencodeError = BencodeError { fault: Fault::Unexpected, at: 0 };

impl std::fmt::Debug for Dict<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.value, f)
    }
}

/// The entries of a dictionary.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = Value::take(&mut self.rest)?.as_bytes()?;
        Some((key, Value::take(&mut self.rest)?))
    }
}

/// The values of a list, as an iterator.
#[derive(Clone, Debug)]
pub struct List<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for List<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        Value::take(&mut self.rest)
    }
}
