//! How long to seed: the share ratio of a torrent, and the rule by which seeding ends by itself.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// The most a rule may ask for: beyond that it is a mistyped number.
const MAX_RATIO: f64 = 1e6;

/// The same for its time: a year.
const MAX_TIME: Duration = Duration::from_secs(365 * 86_400);

/// What went out for what is here: payload sent ÷ verified bytes, in thousandths, rounded down. 1.0
/// means that one full copy was given: of the own data for who publishes it, of what was downloaded
/// for everybody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "f64", from = "f64")]
pub struct ShareRatio(u64);

impl ShareRatio {
    /// One copy.
    pub const ONE: Self = Self(1_000);

    /// The ratio of `uploaded` payload to `verified` bytes; 0 when nothing is here.
    pub fn of(uploaded: u64, verified: u64) -> Self {
        let thousandths = (u128::from(uploaded) * 1_000).checked_div(verified.into());
        Self(u64::try_from(thousandths.unwrap_or(0)).unwrap_or(u64::MAX))
    }
}

impl From<ShareRatio> for f64 {
    fn from(ratio: ShareRatio) -> Self {
        ratio.0 as Self / 1_000.0
    }
}

impl From<f64> for ShareRatio {
    /// Rounded to thousandths; what is no number, or less than nothing, is 0.
    fn from(ratio: f64) -> Self {
        Self((ratio * 1_000.0).round() as u64)
    }
}

impl fmt::Display for ShareRatio {
    /// `1.0`, `0.25`, `1.333`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:03}", self.0 % 1_000);
        let (first, rest) = decimals.split_at(1);
        write!(f, "{}.{first}{}", self.0 / 1_000, rest.trim_end_matches('0'))
    }
}

/// The rule by which seeding ends by itself. It counts only once everything wanted is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum SeedUntil {
    /// So much has been given back.
    Ratio(ShareRatio),
    /// It has been offered complete for so long.
    Time(Duration),
}

impl FromStr for SeedUntil {
    type Err = String;

    /// Reads `ratio=R`, a decimal number from 0.001 to a million, or `time=D`: a whole number with
    /// s, m, h or d, from 1s to 365d.
    fn from_str(text: &str) -> Result<Self, String> {
        let rule = match text.split_once('=') {
            Some(("ratio", ratio)) => parse_ratio(ratio).map(Self::Ratio),
            Some(("time", time)) => parse_time(time).map(Self::Time),
            _ => None,
        };
        rule.ok_or_else(|| format!("`{text}` is no rule: write ratio=1.0 or time=30m"))
    }
}

fn parse_ratio(text: &str) -> Option<ShareRatio> {
    let plain = |c: char| c.is_ascii_digit() || c == '.';
    let ratio: f64 = text.parse().ok().filter(|_| text.chars().all(plain))?;
    let ratio = Some(ratio).filter(|ratio| *ratio <= MAX_RATIO).map(ShareRatio::from)?;
    Some(ratio).filter(|ratio| *ratio > ShareRatio::default())
}

fn parse_time(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number = text.strip_suffix(unit).filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?;
    let time = number.parse().ok().and_then(|n: u64| n.checked_mul(seconds))?;
    Some(Duration::from_secs(time)).filter(|time| !time.is_zero() && *time <= MAX_TIME)
}

impl fmt::Display for SeedUntil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = match self {
            Self::Ratio(ratio) => return write!(f, "ratio={ratio}"),
            Self::Time(time) => time.as_secs(),
        };
        let units = [('d', 86_400), ('h', 3_600), ('m', 60)];
        let fits = units.into_iter().find(|(_, unit)| seconds.is_multiple_of(*unit));
        let (unit, length) = fits.unwrap_or(('s', 1));
        write!(f, "time={}{unit}", seconds / length)
    }
}

impl From<SeedUntil> for String {
    fn from(rule: SeedUntil) -> Self {
        rule.to_string()
    }
}

impl TryFrom<String> for SeedUntil {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Watches over one rule.
#[derive(Clone, Debug)]
pub struct Seeding {
    rule: SeedUntil,
    /// Since when everything wanted has been here without a break.
    complete_since: Option<Timestamp>,
}

impl Seeding {
    /// Nothing is known yet of how far the torrent is.
    pub fn new(rule: SeedUntil) -> Self {
        Self { rule, complete_since: None }
    }

    /// Whether the rule is met with this share ratio, which is `None` while something wanted is
    /// missing.
    pub fn is_met(&mut self, ratio: Option<ShareRatio>, now: Timestamp) -> bool {
        self.complete_since = ratio.map(|_| self.complete_since.unwrap_or(now));
        match (self.rule, ratio, self.complete_since) {
            (SeedUntil::Ratio(enough), Some(ratio), _) => ratio >= enough,
            (SeedUntil::Time(enough), _, Some(since)) => now.since(since) >= enough,
            _ => false,
        }
    }

    /// When to ask [`Self::is_met`] again even if nothing changes.
    pub fn poll_timeout(&self) -> Timestamp {
        match (self.rule, self.complete_since) {
            (SeedUntil::Time(time), Some(since)) => since + time,
            _ => Timestamp::FAR_FUTURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> SeedUntil {
        text.parse().unwrap()
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_ratio_is_rounded_down_so_that_one_means_a_full_copy() {
        assert_eq!(ShareRatio::of(1_000_000, 1_000_000), ShareRatio::ONE);
        assert!(ShareRatio::of(999_999, 1_000_000) < ShareRatio::ONE);
        assert_eq!(ShareRatio::of(u64::MAX, 1), ShareRatio(u64::MAX));
        assert_eq!(ShareRatio::of(5, 0), ShareRatio::default());
    }

    #[test]
    fn a_ratio_is_shown_short() {
        for (thousandths, shown) in [(0, "0.0"), (1_000, "1.0"), (250, "0.25"), (12_345, "12.345")]
        {
            assert_eq!(ShareRatio(thousandths).to_string(), shown);
        }
    }

    #[test]
    fn a_rule_is_a_ratio_or_a_time() {
        assert_eq!(rule("ratio=1.0"), SeedUntil::Ratio(ShareRatio::ONE));
        assert_eq!(rule("ratio=.5"), SeedUntil::Ratio(ShareRatio(500)));
        assert_eq!(rule("time=30m"), SeedUntil::Time(Duration::from_secs(1_800)));
        assert_eq!(rule("time=90s").to_string(), "time=90s");
        assert_eq!(rule("time=120m").to_string(), "time=2h");
        assert_eq!(rule("ratio=2").to_string(), "ratio=2.0");
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in [
            "",
            "1.0",
            "ratio",
            "ratio=",
            "ratio=0",
            "ratio=0.0001",
            "ratio=-1",
            "ratio=inf",
            "ratio=nan",
            "ratio=1e3",
            "ratio=1000001",
            "ratio=1,5",
            "Ratio=1",
            "time=30",
            "time=0s",
            "time=m",
            "time=+3m",
            "time=1.5h",
            "time=366d",
            "time=99999999999999999999d",
            "time=3é",
            "film.torrent",
        ] {
            assert!(bad.parse::<SeedUntil>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_ratio_counts_only_when_everything_is_here() {
        let mut seeding = Seeding::new(rule("ratio=1.0"));
        assert!(!seeding.is_met(None, at(1)));
        assert!(!seeding.is_met(Some(ShareRatio(999)), at(2)));
        assert!(seeding.is_met(Some(ShareRatio::ONE), at(3)));
    }

    #[test]
    fn a_ratio_waits_for_ever_when_nobody_comes() {
        let mut seeding = Seeding::new(rule("ratio=0.1"));
        assert!(!seeding.is_met(Some(ShareRatio::default()), at(1_000_000_000)));
        assert_eq!(seeding.poll_timeout(), Timestamp::FAR_FUTURE);
    }

    #[test]
    fn time_runs_while_everything_is_here_and_begins_anew_after_a_break() {
        let mut seeding = Seeding::new(rule("time=10s"));
        let nothing = Some(ShareRatio::default());
        assert!(!seeding.is_met(None, at(5)));
        assert_eq!(seeding.poll_timeout(), Timestamp::FAR_FUTURE);
        assert!(!seeding.is_met(nothing, at(20)));
        assert_eq!(seeding.poll_timeout(), at(30));
        assert!(!seeding.is_met(None, at(29)));
        assert!(!seeding.is_met(nothing, at(31)));
        assert!(!seeding.is_met(nothing, at(40)));
        assert!(seeding.is_met(nothing, at(41)));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_a_rule_that_reads_the_same_again(
            text in "(ratio=|time=)?[0-9.]{0,8}[smhd]?|.{0,12}",
        ) {
            if let Ok(rule) = text.parse::<SeedUntil>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }

        #[test]
        fn a_rule_is_met_exactly_from_its_number_of_bytes_on(
            verified in 1..u64::MAX / 4_000,
            thousandths in 1..4_000u64,
        ) {
            let enough = (u128::from(verified) * u128::from(thousandths)).div_ceil(1_000) as u64;
            let mut seeding = Seeding::new(SeedUntil::Ratio(ShareRatio(thousandths)));
            prop_assert!(seeding.is_met(Some(ShareRatio::of(enough, verified)), at(0)));
            prop_assert!(!seeding.is_met(Some(ShareRatio::of(enough - 1, verified)), at(0)));
        }
    }
}
