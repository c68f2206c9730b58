//! Answers Prometheus over HTTP, in the little of it that this takes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use p2pfs::rpc::metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::daemon::Daemon;

/// How long somebody may take to ask and to be answered. One is answered after the other.
const WITHIN: Duration = Duration::from_secs(5);
/// What a question may have in bytes; only its end is looked for.
const MAX_QUESTION: u64 = 16 << 10;

/// Opens the address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address} for metrics; name another"))
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, daemon: Arc<Daemon>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match timeout(WITHIN, answer(stream, &daemon)).await {
                Ok(Ok(())) => {}
                failed => tracing::debug!(?failed, "metrics were not taken"),
            },
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
    let wanted = question.starts_with(b"GET /metrics ") || question.starts_with(b"GET / ");
    let (status, body) = match wanted {
        true => ("200 OK", metrics::text(&daemon.shares())),
        false => ("404 Not Found", "see /metrics\n".to_owned()),
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
