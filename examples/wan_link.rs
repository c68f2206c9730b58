//! A long line between two TUN devices: a rate, a delay, a router's queue and lost packets.
//!
//! `wan_link --rate 100 --delay 25 --loss 0.001 --seed 1 --seconds 600 <>DEVICE 1<>DEVICE`
//!
//! The devices are open, non-blocking descriptors: standard input and standard output, each for
//! both directions (`tests/bench/wan.py` makes them). It ends with its parent, on SIGTERM, or when
//! its time is over, and then says on standard error what each direction carried.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeSpec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Greatest IP packet.
const MAX_PACKET: usize = 65_535;
/// What a router's queue holds at least, in packets of `FULL_PACKET` bytes.
const LEAST_QUEUE: u64 = 64;
const FULL_PACKET: u64 = 1500;
/// Packets taken from a device before the other is looked at.
const TURN: usize = 64;
/// A wait is no shorter: waking up for each packet would take much of a core at 100 Mbit/s.
const LEAST_WAIT: Duration = Duration::from_micros(200);
/// By which the kernel may wake us late, instead of its 50 µs.
const TIMER_SLACK_NS: u64 = 1000;

#[derive(Parser)]
struct Args {
    /// Mbit/s of IP packets in each direction, 0 for no limit
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Milliseconds one way
    #[arg(long, default_value_t = 0.0)]
    delay: f64,
    /// Probability that a packet is lost
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// KiB that wait for the line before packets are dropped [default: rate × round trip, at least 64 packets]
    #[arg(long)]
    queue: Option<u64>,
    /// Which packets are lost
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ends after so many seconds
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
}

struct Packet {
    due: Instant,
    bytes: Box<[u8]>,
}

/// One way through the link.
struct Direction<'a> {
    name: &'static str,
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    /// Of a byte on the line; zero without a limit.
    seconds_per_byte: f64,
    delay: Duration,
    /// How far ahead of now the line may be taken.
    longest_queue: Duration,
    loss: f64,
    random: ChaCha8Rng,
    /// When the line has sent all it was given.
    line_free: Instant,
    /// On their way, ordered by `due`.
    travelling: VecDeque<Packet>,
    carried: u64,
    carried_bytes: u64,
    lost: u64,
    dropped: u64,
}

impl<'a> Direction<'a> {
    fn new(name: &'static str, from: BorrowedFd<'a>, to: BorrowedFd<'a>, args: &Args) -> Self {
        let seconds_per_byte = if args.rate > 0.0 { 8e-6 / args.rate } else { 0.0 };
        let delay = Duration::from_secs_f64(args.delay / 1e3);
        let least = seconds_per_byte * (LEAST_QUEUE * FULL_PACKET) as f64;
        let longest_queue = match args.queue {
            Some(kib) => seconds_per_byte * (kib << 10) as f64,
            None => least.max(2.0 * delay.as_secs_f64()),
        };
        let other_end = u64::from(name == "back");
        Self {
            name,
            from,
            to,
            seconds_per_byte,
            delay,
            longest_queue: Duration::from_secs_f64(longest_queue),
            loss: args.loss,
            random: ChaCha8Rng::seed_from_u64(args.seed.wrapping_mul(2) ^ other_end),
            line_free: Instant::now(),
            travelling: VecDeque::new(),
            carried: 0,
            carried_bytes: 0,
            lost: 0,
            dropped: 0,
        }
    }

    /// Takes what the device sends, but no more than a turn of it.
    fn take(&mut self, buffer: &mut [u8]) -> nix::Result<()> {
        for _ in 0..TURN {
            match nix::unistd::read(self.from, buffer) {
                Ok(length) => self.arrive(&buffer[..length], Instant::now()),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn arrive(&mut self, packet: &[u8], now: Instant) {
        let begins = self.line_free.max(now);
        if begins - now > self.longest_queue {
            self.dropped += 1;
            return;
        }
        let sent = Duration::from_secs_f64(self.seconds_per_byte * packet.len() as f64);
        self.line_free = begins + sent;
        // A lost packet has been on the line.
        if self.random.random_bool(self.loss) {
            self.lost += 1;
            return;
        }
        self.travelling
            .push_back(Packet { due: self.line_free + self.delay, bytes: packet.into() });
    }

    /// Hands over what has arrived by now.
    fn deliver(&mut self, now: Instant) {
        while self.travelling.front().is_some_and(|packet| packet.due <= now) {
            let Some(packet) = self.travelling.pop_front() else { break };
            // A device that is down or full loses the packet, as a network may.
            match nix::unistd::write(self.to, &packet.bytes) {
                Ok(_) => {
                    self.carried += 1;
                    self.carried_bytes += packet.bytes.len() as u64;
                }
                Err(_) => self.dropped += 1,
            }
        }
    }

    fn report(&self) -> String {
        let Self { name, carried, carried_bytes, lost, dropped, .. } = self;
        format!("{name}: {carried} packets, {carried_bytes} bytes, {lost} lost, {dropped} dropped")
    }
}

/// Carries packets until it is told to end.
fn run(directions: &mut [Direction; 2], end: &SignalFd, until: Instant) -> anyhow::Result<()> {
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let now = Instant::now();
        if now >= until {
            return Ok(());
        }
        for direction in directions.iter_mut() {
            direction.deliver(now);
        }
        let next =
            directions.iter().filter_map(|one| one.travelling.front()).map(|one| one.due).min();
        let wait =
            next.map_or(until - now, |due| due.saturating_duration_since(now).max(LEAST_WAIT));
        let mut wakers = [directions[0].from, directions[1].from, end.as_fd()]
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        match ppoll(&mut wakers, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
        let [a, b, over] = wakers.map(|waker| waker.any().unwrap_or(true));
        if over {
            return Ok(());
        }
        for (direction, ready) in directions.iter_mut().zip([a, b]) {
            if ready {
                direction
                    .take(&mut buffer)
                    .with_context(|| format!("reading, {}", direction.name))?;
            }
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!((0.0..=1.0).contains(&args.loss), "a probability is between 0 and 1");
    anyhow::ensure!(args.rate >= 0.0 && args.delay >= 0.0, "rate and delay are not negative");
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block()?;
    let end = SignalFd::new(&ends)?;
    prctl::set_pdeathsig(Some(Signal::SIGTERM))?;
    prctl::set_timerslack(TIMER_SLACK_NS)?;
    let (input, output) = (io::stdin(), io::stdout());
    let mut directions = [
        Direction::new("there", input.as_fd(), output.as_fd(), &args),
        Direction::new("back", output.as_fd(), input.as_fd(), &args),
    ];
    run(&mut directions, &end, Instant::now() + Duration::from_secs(args.seconds))?;
    for direction in &directions {
        writeln!(io::stderr(), "{}", direction.report())?;
    }
    Ok(())
}
