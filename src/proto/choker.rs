//! The choker: who may download from us (BEP 3's tit-for-tat).
//!
//! One for the whole session: peers of all torrents compete for the same upload slots. Every ten
//! seconds the three peers that give us most are unchoked, and one more by chance for thirty
//! seconds, newcomers favoured, so that a better peer can be found and a new one can begin. A slot
//! counts while its holder asks for something: an uplink that nobody uses is given to somebody else
//! at once, since what is not sent now is lost for ever.
//!
//! A complete torrent has nothing to gain, so its slots go round: whoever had none for longest is
//! next, for a second and at least a piece. Then each of its neighbours soon has something that the
//! others lack, and the swarm's uplinks are in use. The fastest taker would be the worst choice: it
//! may be one who gives nothing.
//!
//! More slots open while the uplink has capacity left. Where that is not known, slots are tried: one
//! more stays only if more is sent with it, and one less if no less is.
//!
//! Free riders get what chance gives them, and no more; at a complete torrent what nobody else wants.

use std::cmp::Reverse;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::geometry::BLOCK_LEN;
use super::swarm::PeerKey;
use super::time::Timestamp;

/// Time between two rounds.
pub const CHOKE_INTERVAL: Duration = Duration::from_secs(10);

/// Rounds that an optimistic unchoke lasts.
const OPTIMISTIC_ROUNDS: u32 = 3;

/// Slots for the best peers, as long as they are in use.
const REGULAR_SLOTS: usize = 3;

/// More slots that may open while upload capacity is idle although all slots are in use.
const MAX_EXTRA_SLOTS: usize = 20;

/// An uplink that sends less than this share of what it can is idle.
const FULL: f64 = 0.9;

/// Where the capacity is not known, a slot is worth having if it changes what is sent by this share
/// of what a slot sends on average, ...
const WORTH: f64 = 0.5;

/// ... if it is seen within this many more rounds that it was; and after a change that was not worth
/// it the next is tried after as many.
const WAIT_ROUNDS: u32 = 3;

/// Peers that may be unchoked in all, those that ask for nothing included: they may all begin to ask
/// at the same time.
pub const MAX_UNCHOKED: usize = 40;

/// A peer that sent nothing for this long although asked is snubbing us and earns no regular slot.
pub const SNUB_AFTER: Duration = Duration::from_secs(60);

/// How long a peer that was just unchoked counts as busy: it needs a round trip to ask for something.
const SETTLING: Duration = Duration::from_millis(500);

/// A peer that takes nothing for this long although it asked leaves its slot to others; ...
const STUCK: Duration = Duration::from_secs(3);

/// ... for longer where the uplink is so slow that its turn comes more seldom: several times as long
/// as all who are unchoked need for a block each.
const BLOCKS_WAITED: f64 = 4.0;

/// What is left after a round of what we know an uplink to have sent in one.
const REMEMBERED: f64 = 0.9;

/// A turn at a complete torrent lasts this long at least, ...
const TURN: Duration = Duration::from_secs(1);

/// ... and no longer than this for those who take longer than that for a piece.
const LONGEST_TURN: Duration = Duration::from_secs(30);

/// A peer connected for less than this is a newcomer.
const NEWCOMER: Duration = Duration::from_secs(60);

/// Weights in the optimistic draw: a newcomer, ...
const NEWCOMER_WEIGHT: u32 = 12;

/// ... whoever is neither a newcomer nor a free rider, ...
const WEIGHT: u32 = 4;

/// ... and a free rider at a torrent that is not complete. When there is nobody else, the slot stays
/// empty as if there were one other.
const FREE_RIDER_WEIGHT: u32 = 1;

/// Which peer of which torrent.
pub type Who = (u64, PeerKey);

/// What the choker knows of a peer that is interested in us.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which peer.
    pub who: Who,
    /// Bytes a second it gives us.
    pub gives: f64,
    /// Bytes a second it takes from us.
    pub takes: f64,
    /// Bytes it ever took from us.
    pub taken: u64,
    /// When it last took some; when it connected, if it never did.
    pub last_taken: Timestamp,
    /// It does not give although it could, or keeps to itself what only we could give it.
    pub free_rides: bool,
    /// Our torrent is complete, so it can give us nothing.
    pub seeding: bool,
    /// We wait for it and nothing comes ([`SNUB_AFTER`]).
    pub snubbed: bool,
    /// Something it asked for waits for our uplink.
    pub busy: bool,
    /// When it connected.
    pub since: Timestamp,
    /// When its last slot ended; when it connected, if it had none.
    pub slot_ended: Timestamp,
    /// Bytes that it should get in a turn at least: a piece.
    pub piece: u64,
}

/// What ranks candidates, the first of them first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Those who give us something, by how much in bytes a second.
    Gives(Reverse<u64>),
    /// Those whose turn it is at a complete torrent, by how long they have waited for it.
    Turn(Timestamp),
    /// Those who give nothing.
    Takes,
    /// Free riders.
    Rides,
}

impl Candidate {
    fn rank(&self) -> Rank {
        match self {
            Self { free_rides: true, .. } => Rank::Rides,
            Self { seeding: true, .. } => Rank::Turn(self.slot_ended),
            Self { snubbed: false, gives, .. } if *gives > 0.0 => {
                Rank::Gives(Reverse(*gives as u64))
            }
            _ => Rank::Takes,
        }
    }

    /// Whether it may hold a regular slot; `idle` when there are more than are in use.
    fn earns_slot(&self, idle: bool) -> bool {
        match self.seeding {
            true => idle || !self.free_rides,
            // Who gives less than it should gives more if it gets what nobody else has use for.
            false => !self.snubbed && (!self.free_rides || (idle && self.gives > 0.0)),
        }
    }
}

/// A regular slot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    who: Who,
    since: Timestamp,
    /// What its holder had taken by then, in bytes.
    taken: u64,
}

impl Slot {
    /// Whether its holder asks for something and takes it within `patience`, or has not had the time
    /// to.
    fn is_used(&self, holder: &Candidate, patience: Duration, now: Timestamp) -> bool {
        let takes = now.since(self.since.max(holder.last_taken)) < patience;
        holder.busy && takes || now.since(self.since) < SETTLING
    }

    /// Whether its holder at a complete torrent has had its turn.
    fn is_over(&self, holder: &Candidate, patience: Duration, now: Timestamp) -> bool {
        let held = now.since(self.since);
        let served = holder.taken.saturating_sub(self.taken) >= holder.piece;
        held >= LONGEST_TURN || (held >= TURN && (served || !self.is_used(holder, patience, now)))
    }
}

/// How the number of extra slots was changed last, where the capacity is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// One more; for this many rounds yet it may be unseen what came of it.
    More(u32),
    /// One less, likewise.
    Less(u32),
    /// Not at all, for this many rounds yet.
    Rest(u32),
}

/// What there was before a trial.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    /// Bytes a second.
    sent: f64,
    unchoked: usize,
}

/// The choker of a session.
#[derive(Clone, Debug)]
pub struct Choker {
    rng: ChaCha8Rng,
    /// Breaks ties, differently in each session: everyone's favouring those that came first would
    /// split a swarm into those who get everything early and those who get it late.
    salt: u64,
    slots: Vec<Slot>,
    optimistic: Option<Who>,
    rounds_left: u32,
    /// The most that was sent in bytes a second, less and less with each round since.
    best: f64,
    extra: usize,
    trial: Trial,
    before: Before,
    /// One less is tried next, not one more.
    less_next: bool,
}

impl Choker {
    /// A choker with its own random numbers.
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            salt: rng.random(),
            rng,
            slots: Vec::new(),
            optimistic: None,
            rounds_left: 0,
            best: 0.0,
            extra: 0,
            trial: Trial::Rest(0),
            before: Before::default(),
            less_next: false,
        }
    }

    /// A round, every [`CHOKE_INTERVAL`]: who is unchoked from now on, out of the `candidates`
    /// (interested peers). `capacity` is what the uplink can send in bytes a second, where that is
    /// known.
    pub fn round(
        &mut self,
        candidates: &[Candidate],
        capacity: Option<f64>,
        now: Timestamp,
    ) -> Vec<Who> {
        let sent = candidates.iter().map(|c| c.takes).sum();
        self.best = f64::max(sent, self.best * REMEMBERED);
        match capacity {
            None => self.try_slots(sent),
            Some(capacity) if sent < FULL * capacity => {
                self.extra = (self.extra + 1).min(MAX_EXTRA_SLOTS);
            }
            Some(_) => self.extra /= 2,
        }
        self.rounds_left = self.rounds_left.saturating_sub(1);
        let before = std::mem::take(&mut self.slots);
        self.assign(candidates, &before, now)
    }

    /// Opens or closes an extra slot, when `sent` bytes a second are sent with those there are now: a
    /// change stays, and is followed by another like it, if it was worth it. How many are unchoked may
    /// change later than the slots, or by chance: the optimistic one may have a slot as well.
    fn try_slots(&mut self, sent: f64) {
        let more = self.unchoked() as f64 - self.before.unchoked as f64;
        let each = self.before.sent / self.before.unchoked.max(1) as f64;
        let (rose, worth) = (sent - self.before.sent, WORTH * each * more);
        let next = match self.trial {
            Trial::More(wait) if more <= 0.0 && wait > 0 => Trial::More(wait - 1),
            Trial::Less(wait) if more >= 0.0 && wait > 0 => Trial::Less(wait - 1),
            Trial::Rest(wait) if wait > 0 => Trial::Rest(wait - 1),
            Trial::More(_) if more > 0.0 && rose > worth => return self.change(Trial::More, sent),
            Trial::Less(_) if rose >= worth => return self.change(Trial::Less, sent),
            Trial::More(_) => {
                self.extra -= 1;
                Trial::Rest(WAIT_ROUNDS)
            }
            Trial::Less(_) => {
                self.extra += 1;
                Trial::Rest(WAIT_ROUNDS)
            }
            Trial::Rest(_) => {
                self.less_next = !self.less_next;
                let trial = if self.less_next { Trial::More } else { Trial::Less };
                return self.change(trial, sent);
            }
        };
        self.trial = next;
    }

    /// Begins a trial, if there can be one slot more or less.
    fn change(&mut self, trial: fn(u32) -> Trial, sent: f64) {
        self.before = Before { sent, unchoked: self.unchoked() };
        self.trial = trial(WAIT_ROUNDS);
        match self.trial {
            Trial::More(_) if self.extra < MAX_EXTRA_SLOTS => self.extra += 1,
            Trial::Less(_) if self.extra > 0 => self.extra -= 1,
            _ => self.trial = Trial::Rest(WAIT_ROUNDS),
        }
    }

    /// How many are unchoked.
    fn unchoked(&self) -> usize {
        self.slots.len() + usize::from(self.optimistic.is_some_and(|who| !self.has_slot(who)))
    }

    /// Between rounds: a peer became interested or left, the uplink runs dry, or time has passed.
    /// Free slots are given out at once; nobody loses one but whose turn is over.
    pub fn fill(&mut self, candidates: &[Candidate], now: Timestamp) -> Vec<Who> {
        let patience = self.patience(self.slots.len());
        let (before, idle) = (std::mem::take(&mut self.slots), self.extra > 0);
        let waits = |c: &&Candidate| {
            c.seeding && c.earns_slot(false) && !before.iter().any(|slot| slot.who == c.who)
        };
        let next = candidates.iter().any(|c| waits(&c));
        let keeps = |slot: &&Slot| {
            let holder = candidates.iter().find(|c| c.who == slot.who);
            let is_over = |h: &Candidate| next && h.seeding && slot.is_over(h, patience, now);
            holder.is_some_and(|h| h.earns_slot(idle) && !is_over(h))
        };
        self.slots = before.iter().filter(keeps).copied().collect();
        self.assign(candidates, &before, now)
    }

    /// How long who asked for something may take nothing when so many have a slot. Before anything
    /// was sent nothing is known of the uplink, and it is taken for a fast one.
    fn patience(&self, slots: usize) -> Duration {
        if self.best < 1.0 {
            return STUCK;
        }
        let block = f64::from(BLOCK_LEN) / self.best;
        let wait = block * (slots + 1) as f64 * BLOCKS_WAITED;
        Duration::from_secs_f64(wait.min(LONGEST_TURN.as_secs_f64())).max(STUCK)
    }

    fn has_slot(&self, who: Who) -> bool {
        self.slots.iter().any(|slot| slot.who == who)
    }

    /// Gives out the free slots; `before` are those of until now.
    fn assign(&mut self, candidates: &[Candidate], before: &[Slot], now: Timestamp) -> Vec<Who> {
        let patience = self.patience(before.len());
        let slot_of = |c: &Candidate| {
            let held = before.iter().find(|slot| slot.who == c.who);
            let goes_on = |slot: &&Slot| !(c.seeding && slot.is_over(c, patience, now));
            let new = Slot { who: c.who, since: now, taken: c.taken };
            (held.is_some(), held.filter(goes_on).copied().unwrap_or(new))
        };
        let rank = |c: &Candidate| match slot_of(c) {
            // Who is in the middle of its turn stays, who has had it comes last.
            _ if c.free_rides || !c.seeding => c.rank(),
            (true, slot) if slot.since < now => Rank::Turn(Timestamp::ZERO),
            (true, _) => Rank::Turn(now),
            (false, _) => c.rank(),
        };
        let holders = candidates.iter().filter(|c| self.has_slot(c.who));
        let mut used = holders.filter(|c| slot_of(c).1.is_used(c, patience, now)).count();
        let (slots, salt, idle) = (&self.slots, self.salt, self.extra > 0);
        let free =
            |c: &&Candidate| c.earns_slot(idle) && !slots.iter().any(|slot| slot.who == c.who);
        // One slot is kept for complete torrents: who downloads a lot would have all of them.
        let mut seeding = candidates.iter().filter(|c| c.seeding);
        let mut kept = seeding.clone().any(|c| c.earns_slot(false))
            && !seeding.any(|c| slots.iter().any(|slot| slot.who == c.who));
        let mut ranked: Vec<_> = candidates.iter().filter(free).collect();
        ranked.sort_by_cached_key(|c| (rank(c), lot(salt, c.who)));
        for candidate in ranked {
            if used >= REGULAR_SLOTS + self.extra || self.slots.len() + 1 >= MAX_UNCHOKED {
                break;
            }
            if !candidate.seeding && used + usize::from(kept) >= REGULAR_SLOTS + self.extra {
                continue;
            }
            kept &= !candidate.seeding;
            let slot = slot_of(candidate).1;
            used += usize::from(slot.is_used(candidate, patience, now));
            self.slots.push(slot);
        }
        self.choose_optimistic(candidates, now);
        let optimistic = self.optimistic.filter(|who| !self.has_slot(*who));
        self.slots.iter().map(|slot| slot.who).chain(optimistic).collect()
    }

    /// The optimistic slot is drawn among all but the best: that some have a slot because nobody
    /// else uses it does not leave it to those who have none.
    fn choose_optimistic(&mut self, candidates: &[Candidate], now: Timestamp) {
        let rest: Vec<_> = candidates
            .iter()
            .filter(|c| !self.slots.iter().take(REGULAR_SLOTS).any(|slot| slot.who == c.who))
            .collect();
        let stays = match self.optimistic {
            Some(who) => candidates.iter().any(|c| c.who == who),
            None => rest.iter().all(|c| c.free_rides),
        };
        if self.rounds_left == 0 || !stays {
            self.optimistic = self.draw(&rest, now);
            self.rounds_left = OPTIMISTIC_ROUNDS;
        }
    }

    fn draw(&mut self, rest: &[&Candidate], now: Timestamp) -> Option<Who> {
        let weight = |c: &Candidate| match now.since(c.since) {
            // What it gets at a complete torrent nobody else will get from it.
            _ if c.free_rides && c.seeding => 0,
            _ if c.free_rides => FREE_RIDER_WEIGHT,
            age if age < NEWCOMER => NEWCOMER_WEIGHT,
            _ => WEIGHT,
        };
        let nobody = if rest.iter().all(|c| c.free_rides) { WEIGHT } else { 0 };
        let total: u32 = rest.iter().map(|c| weight(c)).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.rng.random_range(0..total + nobody);
        rest.iter()
            .find(|c| {
                let here = at < weight(c);
                at = at.saturating_sub(weight(c));
                here
            })
            .map(|c| c.who)
    }
}

/// A number drawn for `who` (splitmix64's finaliser).
fn lot(salt: u64, who: Who) -> u64 {
    let mut bits = salt ^ who.0.rotate_left(32) ^ who.1.0;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
