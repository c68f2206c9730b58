//! The server's side of the control protocol.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use p2pfs::engine::DataPlace;
use p2pfs::proto::metainfo::layout::EntryKind;
use p2pfs::rpc::frame::{self, FrameError};
use p2pfs::rpc::{
    Call, ErrorKind, Hello, ListedFile, Listener, Outcome, Request, Response, RpcError,
    ShareStatus, SourceRequest, VERSION, WirePath,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::daemon::{Adding, Daemon, Events};

/// How long a client may take to say what it wants.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Files in one message: with the longest paths and all bytes escaped, 20 stay below 1 MiB.
const FILES_A_MESSAGE: usize = 20;
/// Events that wait for a slow client.
const EVENTS: usize = 64;

/// Serves connections until it is dropped; those that are open go on.
pub async fn serve(listener: Listener, daemon: Arc<Daemon>) {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    let _busy = daemon.activity.request();
                    if let Err(error) = connection(stream, &daemon).await {
                        tracing::debug!(%error, "a client was lost");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: leave others the time to give some back.
                tracing::warn!(%error, "a client could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection. A client that hangs up cancels its request.
async fn connection(mut stream: UnixStream, daemon: &Arc<Daemon>) -> Result<(), FrameError> {
    let hello = Hello { version: VERSION, pid: std::process::id() };
    frame::write(&mut stream, &hello).await?;
    let Ok(call) = timeout(CALL_WITHIN, frame::read::<serde_json::Value>(&mut stream)).await else {
        return Ok(());
    };
    let request = match call? {
        Some(call) => understand(call),
        None => return Ok(()),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return frame::write(&mut stream, &Response::Error(error)).await,
    };
    let mut stops = matches!(request, Request::Shutdown);
    let (events, mut told) = mpsc::channel(EVENTS);
    let (mut from, mut to) = stream.split();
    let work = handle(daemon, request, events);
    tokio::pin!(work);
    let mut unexpected = [0];
    let done = loop {
        tokio::select! {
            biased;
            Some(event) = told.recv() => frame::write(&mut to, &event).await?,
            done = &mut work => break done,
            _ = from.read(&mut unexpected) => return Ok(()),
        }
    };
    while let Ok(event) = told.try_recv() {
        frame::write(&mut to, &event).await?;
    }
    let last = match done {
        Ok(outcome) => Response::Done(outcome),
        Err(error) if error.kind == ErrorKind::Settings && daemon.is_spare() => {
            stops = true;
            Response::Error(RpcError { kind: ErrorKind::Leaving, ..error })
        }
        Err(error) => Response::Error(error),
    };
    let written = frame::write(&mut to, &last).await;
    if stops {
        daemon.tell_to_stop();
    }
    written
}

/// Reads a call, looking at its version before anything else.
fn understand(call: serde_json::Value) -> Result<Request, RpcError> {
    if call.get("version").and_then(serde_json::Value::as_u64) != Some(VERSION.into()) {
        return Err(RpcError::failed(
            "the daemon is of another version than the command: unmount all and try again",
        ));
    }
    let call = serde_json::from_value::<Call>(call);
    call.map(|call| call.request)
        .map_err(|e| RpcError::failed(format_args!("the request is not understood: {e}")))
}

/// Carries out one request.
pub async fn handle(
    daemon: &Arc<Daemon>,
    request: Request,
    events: Events,
) -> Result<Outcome, RpcError> {
    match request {
        Request::Mount(request) => daemon.mount(*request, events).await,
        Request::Add { source, dir } => daemon.add_to(&dir, *source).await,
        Request::Remove { dir, name, force } => {
            daemon.remove_from(&dir, name.as_os_str(), force).await
        }
        Request::Seed(request) => daemon.seed(*request, events).await,
        Request::List(request) => list(daemon, &request, &events).await,
        Request::Umount { dir, how } => daemon.umount(&dir, how, &events).await,
        Request::Abort { dir } => daemon.abort(&dir),
        Request::Status { path } => status(daemon, path.as_deref(), &events).await,
        Request::Wait { dir } => daemon.wait(&dir, &events).await,
        Request::Prefetch { path } => daemon.prefetch(&path),
        Request::View { path, cells } => {
            daemon.view(&path, cells, &events).await?;
            Ok(Outcome::default())
        }
        Request::Limit { path, up, down } => {
            daemon.limit(path.as_deref(), (up, down), &events).await?;
            Ok(Outcome::default())
        }
        Request::Pin { path, pin } => daemon.pin(&path, pin).await,
        Request::Cache { dir, what } => daemon.care(&dir, what, events).await,
        Request::Stop { what } => daemon.stop(&what),
        Request::Dht => {
            if let Some(status) = daemon.dht() {
                let _ = events.send(Response::Dht(Box::new(status))).await;
            }
            Ok(Outcome::default())
        }
        Request::Shutdown => {
            daemon.shutdown().await;
            Ok(Outcome::default())
        }
    }
}

/// Lists the files of a torrent whose metadata may have to come from peers.
async fn list(
    daemon: &Daemon,
    request: &SourceRequest,
    events: &Events,
) -> Result<Outcome, RpcError> {
    let how = Adding {
        on_demand: true,
        upload: false,
        select: vec![],
        data: DataPlace::Cache,
        one_of_several: false,
    };
    let lease = daemon.add(request, how, events).await?;
    let (info, layout) = (lease.torrent().info(), lease.torrent().layout());
    for entries in layout.entries.chunks(FILES_A_MESSAGE) {
        let files = entries.iter().filter_map(|entry| match entry.kind {
            EntryKind::File(file) => Some(ListedFile {
                path: WirePath::from_parts(&entry.path),
                length: info.files.get(file)?.length,
            }),
            EntryKind::Symlink(_) => None,
        });
        let _ = events.send(Response::Files(files.collect())).await;
    }
    Ok(lease.outcome())
}

async fn status(
    daemon: &Daemon,
    path: Option<&Path>,
    events: &Events,
) -> Result<Outcome, RpcError> {
    let is_meant = |share: &ShareStatus| match path {
        Some(path) => {
            let is_it = *share.path == *path || share.folder_of.as_deref() == Some(path);
            is_it && !share.detached
        }
        None => true,
    };
    let shares: Vec<_> = daemon.shares().into_iter().filter(is_meant).collect();
    let has_folders = |path: &&Path| daemon.mounts.has_folders(path);
    if let Some(path) = path.filter(|path| shares.is_empty() && !has_folders(path)) {
        let part = daemon.part_status(path)?;
        let _ = events.send(Response::Part(Box::new(part))).await;
    }
    for share in shares {
        let _ = events.send(Response::Share(Box::new(share))).await;
    }
    Ok(Outcome::default())
}
