//! Mounting as an ordinary user: through `fusermount3`, which has the right to.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The program, found along PATH.
const PROGRAM: &str = "fusermount3";

/// Why it did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum FusermountError {
    /// There is no such program.
    #[error("not found")]
    Missing,
    /// It refused, for this reason.
    #[error("{0}")]
    Refused(String),
    /// It could not be run or heard.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Mounts a FUSE filesystem at `dir`; the descriptor on which the kernel's requests arrive.
pub(super) fn mount(dir: &Path, options: &str) -> Result<OwnedFd, FusermountError> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = command();
    // The socket over which it sends the descriptor is its standard input: that one is inherited
    // without any change to a descriptor's flags.
    command.args(["-o", options, "--"]).arg(dir).env("_FUSE_COMMFD", "0");
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(missing)?;
    // With its end held by nobody else, the socket ends when the program does.
    drop(command);
    let received = receive(&ours);
    let output = child.wait_with_output()?;
    match received? {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(refused(&output.stderr)),
    }
}

/// Unmounts what is at `dir`, at once and for new users only if `lazy`.
pub(super) fn unmount(dir: &Path, lazy: bool) -> Result<(), FusermountError> {
    let mut command = command();
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(dir).stdin(Stdio::null());
    let mut output = command.output().map_err(missing)?;
    // Whoever ends a service may end each of its processes: what was meant for us has come by now.
    if output.status.signal().is_some() {
        output = command.output().map_err(missing)?;
    }
    if output.status.success() { Ok(()) } else { Err(refused(&output.stderr)) }
}

/// In a process group of its own: Ctrl-C is for us, and it is needed to unmount.
fn command() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env("LC_ALL", "C").process_group(0);
    command
}

fn missing(error: io::Error) -> FusermountError {
    match error.kind() {
        io::ErrorKind::NotFound => FusermountError::Missing,
        _ => FusermountError::Io(error),
    }
}

/// What it said, without its name.
fn refused(stderr: &[u8]) -> FusermountError {
    let said = String::from_utf8_lossy(stderr);
    let line =
        said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    FusermountError::Refused(line.trim_start_matches("fusermount3: ").to_owned())
}

/// The descriptor that comes over the socket; `None` if it ends without one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}
