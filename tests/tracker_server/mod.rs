//! A small HTTP server on loopback that behaves as badly as it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How every request is answered.
#[derive(Clone)]
pub enum Behaviour {
    /// With these bytes, head and all; then the connection is closed.
    Sends(Vec<u8>),
    /// With a body of unknown length that never ends.
    Endless,
    /// With a body of which a byte comes every 50 ms, for ever.
    Dribbles,
    /// With a redirect to itself.
    RedirectsToItself,
    /// Not at all, with the connection kept open.
    Silent,
}

impl Behaviour {
    /// A whole answer.
    pub fn body(status: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        Self::Sends([head.as_bytes(), body].concat())
    }
}

/// The server; it ends with the test's runtime.
pub struct Server {
    addr: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Server {
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let behaviour = behaviour.clone();
                // The client hangs up on us; that is what is being tested.
                tokio::spawn(async move { answer(stream, behaviour).await.ok() });
            }
        });
        Self { addr, requests }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Requests so far (each has a connection of its own).
    #[allow(dead_code)] // not every test binary counts
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn answer(stream: TcpStream, behaviour: Behaviour) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    match behaviour {
        Behaviour::Sends(bytes) => write.write_all(&bytes).await,
        Behaviour::RedirectsToItself => {
            write
                .write_all(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")
                .await
        }
        Behaviour::Silent => std::future::pending().await,
        Behaviour::Endless => {
            write.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                write.write_all(&[b'd'; 65_536]).await?;
            }
        }
        Behaviour::Dribbles => {
            write.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await?;
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            loop {
                tick.tick().await;
                write.write_all(b"d").await?;
            }
        }
    }
}
