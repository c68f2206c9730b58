//! Answers Prometheus over HTTP, in the little of it that this takes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use p2pfs::rpc::metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::daemon::Daemon;

/// How long somebody may take to ask and to be answered.
const WITHIN: Duration = Duration::from_secs(5);
/// How many are answered at a time; further ones wait for these.
const AT_ONCE: usize = 16;
/// What a question may have in bytes.
const MAX_QUESTION: u64 = 16 << 10;

/// Opens the address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address} for metrics; name another"))
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, daemon: Arc<Daemon>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    // Nobody closes it.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    match timeout(WITHIN, answer(stream, &daemon)).await {
                        Ok(Ok(())) => {}
                        failed => tracing::debug!(?failed, "metrics were not taken"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "nobody can be accepted who asks for metrics");
                sleep(WITHIN).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, daemon: &Daemon) -> io::Result<()> {
    let mut question = Vec::new();
    let (read, mut write) = stream.split();
    let mut read = read.take(MAX_QUESTION);
    while !question.ends_with(b"\r\n\r\n") {
        if read.read_buf(&mut question).await? == 0 {
            return Ok(());
        }
    }
    let question = String::from_utf8_lossy(&question);
    let wanted = question.starts_with("GET /metrics ") || question.starts_with("GET / ");
    let (status, body) = match (wanted, by_address(&question)) {
        (_, false) => ("403 Forbidden", "ask by address, or as localhost\n".to_owned()),
        (true, true) => ("200 OK", metrics::text(&daemon.shares())),
        (false, true) => ("404 Not Found", "see /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    write.write_all(head.as_bytes()).await?;
    write.write_all(body.as_bytes()).await?;
    write.shutdown().await
}

/// Whether we are asked by our address. A page in a browser of this machine may have a name of its own
/// that leads here (DNS rebinding), and could read the answer then. Who says no name is no browser.
fn by_address(question: &str) -> bool {
    let hosts = question.lines().filter_map(|line| {
        let (name, host) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| host.trim())
    });
    let is_address = |host: &str| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => name,
            _ => host,
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
    };
    hosts.into_iter().all(is_address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_others_gave_us_is_refused() {
        let asked = |host: &str| by_address(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        for good in ["127.0.0.1", "192.0.2.1:9469", "[::1]:9469", "localhost:9469"] {
            assert!(asked(good), "{good}");
        }
        for bad in ["example.org", "127.0.0.1.example.org:80", "", "localhost.example"] {
            assert!(!asked(bad), "{bad}");
        }
        assert!(by_address("GET / HTTP/1.0\r\n\r\n"));
        assert!(!by_address("GET / HTTP/1.1\r\nHost: [::1]\r\nHost: example.org\r\n\r\n"));
    }
}
