//! Sizes and rates as people write and read them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A cache that is smaller could not even hold what describes a torrent, in bytes.
const MIN_CACHE: u64 = 1 << 20;

/// Reads a number of bytes: digits, and one of K, M, G, T (powers of 1024, either case, `iB` or `B`
/// may follow).
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write bytes, or a number with K, M, G or T");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Reads a rate in bytes per second, which is more than nothing.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("a limit of 0 would stop all transfers; leave the option away for none".into()),
        rate => Ok(rate),
    }
}

/// Reads a new limit: a rate in bytes per second, or `none`, which is 0.
pub fn parse_limit(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        text => parse(text).and_then(|rate| match rate {
            0 => Err("a limit of 0 would stop all transfers; `none` takes the limit away".into()),
            rate => Ok(rate),
        }),
    }
}

/// Shows a limit: a rate, or `none`.
pub fn limit(limit: Option<u64>) -> String {
    limit.map_or("none".into(), |rate| format!("{}/s", show(rate)))
}

/// How much something may take: so much, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// In bytes.
    Bytes(u64),
    /// In per cent.
    Share(u8),
}

impl Amount {
    /// In bytes, of a `whole`.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (u128::from(whole) * u128::from(share) / 100) as u64,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{}", show(*bytes)),
            Self::Share(share) => write!(f, "{share}%"),
        }
    }
}

/// Reads a size, or a share as `N%`. The cache needs a mebibyte to be of any use.
pub fn parse_cache_size(text: &str) -> Result<Amount, String> {
    let amount = match text.strip_suffix('%') {
        None => Amount::Bytes(parse(text)?),
        Some(share) => match share.parse() {
            Ok(share @ 1..=100) => Amount::Share(share),
            _ => return Err(format!("`{text}` is not a share: write 1% to 100%")),
        },
    };
    match amount {
        Amount::Bytes(..MIN_CACHE) => Err(format!("the cache needs {} at least", show(MIN_CACHE))),
        amount => Ok(amount),
    }
}

/// Shows a number of bytes with three digits at least: `1023 B`, `1.50 MiB`.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let places = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.places$} {}", UNITS[unit])
}

/// A number of things: `1 file`, `2 files`.
pub fn count(n: u64, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// How long `bytes` take at `rate` bytes a second, such as `3 h 20 min`; `None` when there is nothing to
/// wait for, or no end of it in sight.
pub fn time_left(bytes: u64, rate: u64) -> Option<String> {
    let seconds = bytes.div_ceil(rate.max(1));
    (bytes > 0 && rate > 0).then(|| duration(seconds))
}

/// Shows so many seconds by their two largest units: `40 s`, `3 min 5 s`, `2 d 7 h`.
pub fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let first = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[first];
    let (whole, rest) = (seconds / unit, seconds % unit);
    match UNITS.get(first + 1) {
        Some((next, its_name)) if rest >= *next => {
            format!("{whole} {name} {} {its_name}", rest / next)
        }
        _ => format!("{whole} {name}"),
    }
}

/// `part` of `whole` in per cent, rounded down; all of nothing is 100.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 100 } else { (u128::from(part) * 100 / u128::from(whole)) as u64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(parse("12"), Ok(12));
        assert_eq!(parse("4k"), Ok(4096));
        assert_eq!(parse("3M"), Ok(3 << 20));
        assert_eq!(parse("2GiB"), Ok(2 << 30));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in ["", "k", "-1", "1.5M", "1X", "1 M", "99999999999T", "é"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse_rate("0").is_err() && parse_limit("0").is_err());
        assert_eq!((parse_limit("none"), parse_limit("2K")), (Ok(0), Ok(2048)));
    }

    #[test]
    fn the_cache_may_take_bytes_or_a_share() {
        assert_eq!(parse_cache_size("20G"), Ok(Amount::Bytes(20 << 30)));
        assert_eq!(parse_cache_size("10%"), Ok(Amount::Share(10)));
        assert_eq!(Amount::Share(10).of(u64::MAX), u64::MAX / 10);
        for bad in ["0%", "101%", "%", "-1%", "1.5%", "0", "100k", "x"] {
            assert!(parse_cache_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(1536 << 10), "1.50 MiB");
        assert_eq!(show(u64::MAX), "16.0 EiB");
        assert_eq!((count(1, "file"), count(2, "file")), ("1 file".into(), "2 files".into()));
        assert_eq!((percent(1, 3), percent(0, 0), percent(u64::MAX, u64::MAX)), (33, 100, 100));
    }

    #[test]
    fn times_are_shown_by_two_units() {
        let shown = [0, 59, 60, 3_599, 3_600, 7_260, 200_000].map(duration);
        assert_eq!(shown, ["0 s", "59 s", "1 min", "59 min 59 s", "1 h", "2 h 1 min", "2 d 7 h"]);
        assert_eq!(time_left(1001, 10).as_deref(), Some("1 min 41 s"));
        assert_eq!((time_left(0, 10), time_left(10, 0)), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_a_size(text in ".{0,12}") {
            let _ = parse(&text);
        }
    }
}
