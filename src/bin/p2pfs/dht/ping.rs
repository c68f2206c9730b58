//! `p2pfs dht ping`

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use p2pfs::proto::dht::NodeId;
use p2pfs::proto::dht::krpc::{Body, MAX_DATAGRAM, Message, Method};
use p2pfs::rpc::{parse_node, visible};
use serde::Serialize;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;

/// How long one question may take before it is asked again: a datagram can be lost.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Ask a DHT node whether it is there
///
/// Says its id, the round trip, whether the id may stand at that address (BEP 42), and from where it
/// sees us.
#[derive(Debug, Args)]
pub struct Ping {
    /// The node
    #[arg(value_name = "HOST:PORT", value_parser = parse_node)]
    node: String,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "SECS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// What an answer tells.
#[derive(Debug, Serialize)]
struct Pong {
    id: String,
    address: SocketAddr,
    round_trip_ms: f64,
    /// Whether its id may stand at its address (BEP 42).
    id_fits_address: bool,
    /// From where it sees us, if it says so.
    our_address: Option<SocketAddr>,
}

impl Ping {
    pub async fn run(self) -> Result<()> {
        let limit = Duration::from_secs(self.timeout);
        let pong = match timeout(limit, self.ask()).await {
            Ok(pong) => pong?,
            Err(_) => bail!("{}: no answer within {} s", self.node, self.timeout),
        };
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&pong)?)?;
            return Ok(());
        }
        pong.print(&mut out)?;
        Ok(())
    }

    async fn ask(&self) -> Result<Pong> {
        let found = lookup_host(&self.node).await;
        let mut found = found.with_context(|| format!("{}: cannot be found", self.node))?;
        let node = found.next().with_context(|| format!("{}: has no address", self.node))?;
        let any: IpAddr = match node {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(node).await?;
        loop {
            if let Ok(pong) = timeout(ASK_AGAIN, ask_once(&socket, node)).await {
                return pong;
            }
        }
    }
}

/// Waits for ever for the answer to one question.
async fn ask_once(socket: &UdpSocket, node: SocketAddr) -> Result<Pong> {
    let transaction: [u8; 4] = rand::random();
    let mut question =
        Message::query(transaction.to_vec(), NodeId::new(rand::random()), Method::Ping);
    question.read_only = true;
    let (began, mut buffer) = (Instant::now(), [0; MAX_DATAGRAM]);
    socket.send(&question.encode()).await?;
    loop {
        let received = socket.recv(&mut buffer).await;
        let length = received.with_context(|| format!("{node}: nobody is there"))?;
        let Some(Ok(message)) = buffer.get(..length).map(Message::parse) else { continue };
        if message.transaction != transaction {
            continue;
        }
        match message.body {
            Body::Answer(answer) => {
                return Ok(Pong {
                    id: answer.id.to_string(),
                    address: node,
                    round_trip_ms: began.elapsed().as_secs_f64() * 1e3,
                    id_fits_address: answer.id.fits(node.ip()),
                    our_address: message.ip,
                });
            }
            Body::Error(error) => bail!("{node}: refuses: {}", visible(&error.text)),
            Body::Query(_) => {}
        }
    }
}

impl Pong {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}  {}  {:.1} ms", self.id, self.address, self.round_trip_ms)?;
        let fits = if self.id_fits_address { "fits" } else { "does not fit" };
        writeln!(out, "  its id {fits} its address (BEP 42)")?;
        match self.our_address {
            Some(ours) => writeln!(out, "  it sees us at {ours}"),
            None => writeln!(out, "  it does not say from where it sees us"),
        }
    }
}
