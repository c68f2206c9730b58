//! The client's side of one connection.

use std::io::ErrorKind as IoKind;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::frame::{self, FrameError};
use super::{Call, Hello, Outcome, Request, Response, RpcError, VERSION};

/// How long a daemon may take to say hello. It does so at once unless it is stopped or swamped.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no connection to a daemon.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No daemon listens there, or it is just leaving.
    #[error("no daemon is running")]
    NotRunning,
    /// The system takes no longer ones.
    #[error("{0}: too long for the path of a socket (107 bytes): name a shorter one with --socket")]
    TooLong(String),
    /// The socket is there but may not be used, or failed.
    #[error("cannot reach the daemon at {socket}: {cause}")]
    Failed {
        /// Path of the socket.
        socket: String,
        /// What the system says.
        cause: String,
    },
    /// Another user's program listens there.
    #[error("the daemon at {0} belongs to another user: name your own with --socket")]
    NotOurs(String),
    /// The daemon is of another version.
    #[error("the daemon at {0} is of another version: unmount all and let it be started anew")]
    Version(String),
}

/// A connection on which nothing was asked yet.
pub struct Client {
    stream: UnixStream,
    hello: Hello,
}

impl Client {
    /// Connects to the daemon behind `socket` and waits for its greeting.
    pub async fn connect(socket: &Path) -> Result<Self, ConnectError> {
        let shown = || socket.display().to_string();
        let failed = |cause: String| ConnectError::Failed { socket: shown(), cause };
        let mut stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(e) if e.kind() == IoKind::InvalidInput => {
                return Err(ConnectError::TooLong(shown()));
            }
            Err(e) if is_absence(e.kind()) => return Err(ConnectError::NotRunning),
            Err(e) => return Err(failed(e.to_string())),
        };
        let peer = stream.peer_cred().map_err(|e| failed(e.to_string()))?.uid();
        let own = geteuid().as_raw();
        if own != 0 && peer != own && peer != 0 {
            return Err(ConnectError::NotOurs(shown()));
        }
        let hello: Hello = match timeout(HELLO_WITHIN, frame::read(&mut stream)).await {
            Ok(Ok(Some(hello))) => hello,
            Ok(Ok(None)) => return Err(ConnectError::NotRunning),
            Ok(Err(FrameError::Io(e))) if is_absence(e.kind()) => {
                return Err(ConnectError::NotRunning);
            }
            Ok(Err(FrameError::Json(_))) => return Err(ConnectError::Version(shown())),
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Err(_) => return Err(failed("it does not answer".into())),
        };
        if hello.version != VERSION {
            return Err(ConnectError::Version(shown()));
        }
        Ok(Self { stream, hello })
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> u32 {
        self.hello.pid
    }

    /// Asks for `request`, hands everything that is said on the way to `on_event`, and returns how
    /// it ended. Dropping this future cancels the request.
    pub async fn call(
        mut self,
        request: Request,
        mut on_event: impl FnMut(Response),
    ) -> Result<Outcome, RpcError> {
        let lost = |e: FrameError| RpcError::failed(format_args!("the daemon is lost: {e}"));
        frame::write(&mut self.stream, &Call { version: VERSION, request }).await.map_err(lost)?;
        loop {
            match frame::read(&mut self.stream).await.map_err(lost)? {
                Some(Response::Done(outcome)) => return Ok(outcome),
                Some(Response::Error(error)) => return Err(error),
                Some(event) => on_event(event),
                None => return Err(RpcError::failed("the daemon ended before it answered")),
            }
        }
    }
}

/// Whether an error of a socket means that nobody is behind it.
fn is_absence(kind: IoKind) -> bool {
    matches!(
        kind,
        IoKind::NotFound
            | IoKind::ConnectionRefused
            | IoKind::ConnectionReset
            | IoKind::BrokenPipe
            | IoKind::UnexpectedEof
    )
}
