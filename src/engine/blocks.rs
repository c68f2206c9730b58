//! What peers ask for of a torrent's bytes, read off the runtime. Data of somebody else has its own threads, and a
//! time by which it has to come: whoever asked is refused then.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::proto::geometry::PieceIndex;
use crate::proto::merkle::Hash;
use crate::proto::wire::RawBlock;
use crate::store::TorrentStore;

/// How long data of somebody else may take to come before it is not sent.
const LENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Blocks that were asked for, each `None` if it is not here.
pub(super) type Blocks = Vec<(RawBlock, Option<Vec<u8>>)>;

/// Reads blocks.
pub(super) async fn read_blocks(store: Arc<TorrentStore>, uploads: Vec<RawBlock>) -> Blocks {
    let piece = |raw: &RawBlock| store.info().geometry.contains(raw.piece, raw.begin, raw.length);
    let lender = |raw: &RawBlock| piece(raw).and_then(|piece| store.lender_of(piece));
    let mut blocks = Vec::new();
    for together in uploads.chunk_by(|a, b| lender(a) == lender(b)) {
        let (reading, asked) = (store.clone(), together.to_vec());
        let read = move || asked.into_iter().map(|raw| (raw, read_block(&reading, raw))).collect();
        let read: Option<Vec<_>> = match together.first().and_then(lender) {
            None => tokio::task::spawn_blocking(read).await.ok(),
            Some(file) if store.is_stuck(file) => None,
            Some(file) => {
                let (answer, answered) = oneshot::channel();
                store.wait_elsewhere(file, move || {
                    if !answer.is_closed() {
                        let _ = answer.send(read());
                    }
                });
                in_time(answered).await
            }
        };
        blocks.extend(read.unwrap_or_else(|| together.iter().map(|raw| (*raw, None)).collect()));
    }
    blocks
}

/// The hashes of the blocks of a piece, `None` if it is not here.
pub(super) async fn hash_blocks(
    store: Arc<TorrentStore>,
    piece: PieceIndex,
) -> Option<Arc<[Hash]>> {
    let lender = store.lender_of(piece);
    if lender.is_some_and(|file| store.is_stuck(file)) {
        return None;
    }
    let (answer, answered) = oneshot::channel();
    store.hash_blocks(piece, move |hashes| {
        let _ = answer.send(hashes);
    });
    drop(store);
    let hashes = if lender.is_some() { in_time(answered).await } else { answered.await.ok() };
    hashes.flatten()
}

fn read_block(store: &TorrentStore, raw: RawBlock) -> Option<Vec<u8>> {
    let piece = store.info().geometry.contains(raw.piece, raw.begin, raw.length)?;
    let mut data = vec![0; raw.length as usize];
    store.read_block(piece, raw.begin, &mut data).ok()?.then_some(data)
}

/// What data of somebody else answers, if it does so in time.
async fn in_time<T>(answered: oneshot::Receiver<T>) -> Option<T> {
    tokio::time::timeout(LENT_TIMEOUT, answered).await.ok().and_then(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::testing::Lender;
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_hashes_of_data_that_does_not_come() {
        let lender = Lender::new();
        let piece = lender.store.info().geometry.piece(1).unwrap();
        let hash = || {
            let hashed = hash_blocks(lender.store.clone(), piece);
            tokio::time::timeout(Duration::from_secs(60), hashed)
        };
        let stuck = lender.stick();
        assert_eq!(hash().await, Ok(None));
        assert!(lender.store.is_stuck(0));
        drop(stuck);
        while lender.store.is_stuck(0) {
            tokio::task::yield_now().await;
        }
        assert_eq!(hash().await.unwrap().map(|hashes| hashes.len()), Some(1));
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::fs;
    use std::sync::{Mutex, mpsc};

    use sha1::{Digest, Sha1};
    use tempfile::TempDir;

    use super::*;
    use crate::proto::metainfo::Info;
    use crate::proto::metainfo::layout::Layout;
    use crate::store::Store;

    /// A torrent of two pieces of sevens whose file is somebody else's.
    pub struct Lender {
        pub store: Arc<TorrentStore>,
        _dirs: [TempDir; 2],
    }

    impl Lender {
        pub fn new() -> Self {
            let dirs = [(); 2].map(|()| TempDir::new().unwrap());
            let path = dirs[0].path().join("lent");
            fs::write(&path, [7; 32_768]).unwrap();
            let hash = Sha1::digest([7; 16_384]);
            let start = b"d6:lengthi32768e4:name4:lent12:piece lengthi16384e6:pieces40:";
            let info = Info::parse([&start[..], &hash, &hash, b"e"].concat()).unwrap();
            let (info, layout) = (Arc::new(info.clone()), Layout::new(&info));
            let store = Store::open(dirs[1].path()).unwrap();
            let store = store.in_place(info, &layout, &path).unwrap();
            for piece in store.info().geometry.pieces() {
                let (done, answered) = mpsc::channel();
                store.verify_at_rest(piece, None, move |good| done.send(good).unwrap());
                assert!(answered.recv().unwrap());
            }
            Self { store, _dirs: dirs }
        }

        /// Has nothing come of the file until what is returned is dropped.
        pub fn stick(&self) -> mpsc::Sender<()> {
            let (release, held) = mpsc::channel::<()>();
            let held = Arc::new(Mutex::new(held));
            for _ in 0..64 {
                let held = held.clone();
                self.store.wait_elsewhere(0, move || {
                    let _ = held.lock().unwrap().recv();
                });
            }
            release
        }
    }
}
