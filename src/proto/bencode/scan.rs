//! The scanner: decides whether bytes are bencode, and where a value ends.

/// What a context allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many lists and dictionaries may be open at once.
    pub depth: usize,
    /// The longest value, in bytes.
    pub size: usize,
}

impl Limits {
    /// A datagram of a DHT or tracker: what fits one packet.
    pub const DATAGRAM: Self = Self { depth: 16, size: 1536 };
    /// A message between peers, the largest being the extended handshake.
    pub const MESSAGE: Self = Self { depth: 16, size: 64 * 1024 };
    /// An info dictionary.
    pub const INFO: Self = Self { depth: 128, size: 32 * 1024 * 1024 };
    /// A .torrent file: one level around the info dictionary.
    pub const TORRENT: Self = Self { depth: 129, size: 64 * 1024 * 1024 };
}

/// Why bytes are not bencode that we accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault} at byte {at}")]
pub struct BencodeError {
    /// What is wrong.
    pub fault: Fault,
    /// Where, in bytes from the start.
    pub at: usize,
}

/// What can be wrong with bencode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The bytes end within a value.
    #[error("cut short")]
    Truncated,
    /// A byte that begins no value, or a key that is not a string.
    #[error("not bencode")]
    Unexpected,
    /// Not the one way to write a number of 64 bits: `i-0e`, `i03e`, `ie`, `i1x` or too large.
    #[error("a malformed number")]
    Number,
    /// A dictionary has a key twice.
    #[error("a key that occurs twice")]
    DuplicateKey,
    /// More lists and dictionaries within each other than [`Limits::depth`].
    #[error("nested too deeply")]
    TooDeep,
    /// Longer than [`Limits::size`].
    #[error("too long")]
    TooLong,
    /// Bytes follow the value.
    #[error("unexpected bytes after the end")]
    Trailing,
}

/// A list or dictionary whose end has not been seen.
enum Open {
    List,
    Dict(OpenDict),
}

/// A dictionary whose end has not been seen.
struct OpenDict {
    /// Where its keys begin in [`Scanner::keys`].
    first_key: usize,
    /// Whether its keys came in order so far; then no two are the same.
    sorted: bool,
    /// Whether a key comes next, or its value.
    key_next: bool,
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    open: Vec<Open>,
    /// The keys of all open dictionaries, innermost last.
    keys: Vec<&'a [u8]>,
}

/// The length of the value that `bytes` begin with.
pub(super) fn scan(bytes: &[u8], limits: Limits) -> Result<usize, BencodeError> {
    let window = bytes.get(..limits.size).unwrap_or(bytes);
    let mut scanner = Scanner { bytes: window, at: 0, open: Vec::new(), keys: Vec::new() };
    scanner.run(limits.depth).map_err(|fault| {
        let cut_by_us = fault == Fault::Truncated && window.len() < bytes.len();
        let fault = if cut_by_us { Fault::TooLong } else { fault };
        BencodeError { fault, at: scanner.at }
    })
}

impl<'a> Scanner<'a> {
    fn run(&mut self, depth: usize) -> Result<usize, Fault> {
        loop {
            let byte = self.peek()?;
            match self.open.last() {
                Some(_) if byte == b'e' => self.close()?,
                Some(Open::Dict(OpenDict { key_next: true, .. })) => self.key()?,
                _ => self.value(byte, depth)?,
            }
            if self.open.is_empty() {
                return Ok(self.at);
            }
        }
    }

    /// Reads a string or number, or opens a list or dictionary.
    fn value(&mut self, first: u8, depth: usize) -> Result<(), Fault> {
        let opened = match first {
            b'i' => return self.int().map(|()| self.value_done()),
            b'0'..=b'9' => return self.string().map(|_| self.value_done()),
            b'l' => Open::List,
            b'd' => {
                let first_key = self.keys.len();
                Open::Dict(OpenDict { first_key, sorted: true, key_next: true })
            }
            _ => return Err(Fault::Unexpected),
        };
        if self.open.len() >= depth {
            return Err(Fault::TooDeep);
        }
        self.open.push(opened);
        self.at += 1;
        Ok(())
    }

    fn value_done(&mut self) {
        if let Some(Open::Dict(outer)) = self.open.last_mut() {
            outer.key_next = true;
        }
    }

    /// Ends the innermost list or dictionary.
    fn close(&mut self) -> Result<(), Fault> {
        if let Some(Open::Dict(dict)) = self.open.last() {
            if !dict.key_next {
                return Err(Fault::Unexpected);
            }
            let keys = self.keys.get_mut(dict.first_key..).unwrap_or_default();
            if !dict.sorted && has_duplicates(keys) {
                return Err(Fault::DuplicateKey);
            }
            self.keys.truncate(dict.first_key);
        }
        self.open.pop();
        self.at += 1;
        self.value_done();
        Ok(())
    }

    fn key(&mut self) -> Result<(), Fault> {
        if !self.peek()?.is_ascii_digit() {
            return Err(Fault::Unexpected);
        }
        let start = self.at;
        let key = self.string()?;
        let Some(Open::Dict(dict)) = self.open.last_mut() else { return Ok(()) };
        let previous = self.keys.get(dict.first_key..).and_then(|keys| keys.last());
        match previous.map(|p| p.cmp(&key)) {
            Some(std::cmp::Ordering::Equal) => {
                self.at = start;
                return Err(Fault::DuplicateKey);
            }
            Some(std::cmp::Ordering::Greater) => dict.sorted = false,
            _ => {}
        }
        dict.key_next = false;
        self.keys.push(key);
        Ok(())
    }

    fn peek(&self) -> Result<u8, Fault> {
        self.bytes.get(self.at).copied().ok_or(Fault::Truncated)
    }

    fn int(&mut self) -> Result<(), Fault> {
        let rest = self.bytes.get(self.at + 1..).unwrap_or_default();
        let (_, length) = number(rest, b'e', true)?;
        self.at += 1 + length;
        Ok(())
    }

    fn string(&mut self) -> Result<&'a [u8], Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (length, digits) = number(rest, b':', false)?;
        let length = usize::try_from(length).map_err(|_| Fault::Truncated)?;
        let text = rest.get(digits..).and_then(|r| r.get(..length)).ok_or(Fault::Truncated)?;
        self.at += digits + length;
        Ok(text)
    }
}

/// The longest number: `-9223372036854775808`.
const MAX_DIGITS: usize = 20;

/// Reads a number in its one canonical form up to and with `end`; gives its value and the bytes
/// it took.
pub(super) fn number(bytes: &[u8], end: u8, signed: bool) -> Result<(i64, usize), Fault> {
    let window = bytes.get(..MAX_DIGITS + 1).unwrap_or(bytes);
    let Some(length) = window.iter().position(|b| *b == end) else {
        let digits = window.iter().all(|b| b.is_ascii_digit() || *b == b'-');
        let short = digits && window.len() <= MAX_DIGITS;
        return Err(if short { Fault::Truncated } else { Fault::Number });
    };
    let text = window.get(..length).unwrap_or_default();
    let (negative, digits) = match text {
        [b'-', rest @ ..] if signed => (true, rest),
        _ => (false, text),
    };
    let canonical = match digits {
        [] => false,
        [b'0'] => !negative,
        [first, ..] => *first != b'0',
    };
    let value = if canonical { negated(digits) } else { None };
    let value = if negative { value } else { value.and_then(i64::checked_neg) };
    value.map(|value| (value, length + 1)).ok_or(Fault::Number)
}

/// Minus the number that has these digits, as there is one more of these than of the others.
fn negated(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0i64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_sub(digit)
    })
}

/// Sorts `keys` and says whether two are the same.
fn has_duplicates(keys: &mut [&[u8]]) -> bool {
    keys.sort_unstable();
    !keys.is_sorted_by(|a, b| a < b)
}
