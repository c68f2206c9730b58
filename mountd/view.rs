//! What goes on in one torrent, for who looks at it.

use std::path::Path;

use p2pfs::engine::Torrent;
use p2pfs::proto::metainfo::layout::EntryKind;
use p2pfs::proto::torrent::ReadView;
use p2pfs::rpc::{
    Cell, MAX_CELLS, PeerStatus, Response, RpcError, TorrentView, WaitStatus, WirePath, size,
};

use crate::daemon::{Daemon, Events};

impl Daemon {
    /// Describes what is mounted or seeded at `path` in detail.
    pub async fn view(&self, path: &Path, cells: u32, events: &Events) -> Result<(), RpcError> {
        let torrent = self.torrent_at(path)?;
        let mut shares = self.shares().into_iter();
        let share = shares.find(|share| *share.path == *path && !share.detached);
        let Some(share) = share else {
            return Err(RpcError::not_here(format_args!("{}: has ended", path.display())));
        };
        let view = torrent.view().await;
        let count = u64::from(torrent.info().geometry.piece_count());
        let peers = view.peers.into_iter().map(|peer| PeerStatus {
            addr: peer.addr,
            client: peer.client,
            percent: size::percent(peer.pieces.into(), count),
            down: peer.down,
            up: peer.up,
        });
        let reads = view.reads.iter().filter_map(|read| wait(&torrent, read)).collect();
        let wanted: Vec<_> = view.reads.iter().map(|read| read.range.clone()).collect();
        let map = map(&torrent, cells.min(MAX_CELLS), &wanted, &view.coming);
        let view = TorrentView { share, map, peers: peers.collect(), reads };
        let _ = events.send(Response::View(Box::new(view))).await;
        Ok(())
    }
}

/// A waiting read by the file it is of.
fn wait(torrent: &Torrent, read: &ReadView) -> Option<WaitStatus> {
    let (info, start) = (torrent.info(), read.range.start);
    let is_it = |file: &usize| {
        info.files.get(*file).is_some_and(|f| (f.offset..f.offset + f.length).contains(&start))
    };
    let entry = torrent.layout().entries.iter().find(|entry| match &entry.kind {
        EntryKind::File(file) => is_it(file),
        EntryKind::Symlink(_) => false,
    })?;
    let EntryKind::File(file) = entry.kind else { return None };
    Some(WaitStatus {
        file: WirePath::from_parts(&entry.path),
        offset: start - info.files.get(file)?.offset,
        length: read.range.end - start,
        seconds: read.waited.as_secs(),
    })
}

/// The pieces in at most `cells` cells.
fn map(
    torrent: &Torrent,
    cells: u32,
    wanted: &[std::ops::Range<u64>],
    coming: &[p2pfs::proto::geometry::PieceIndex],
) -> Vec<Cell> {
    let geometry = &torrent.info().geometry;
    let count = geometry.piece_count() as usize;
    let is = |piece, among: &[_]| among.binary_search(&piece).is_ok();
    let mut waited: Vec<_> =
        wanted.iter().flat_map(|range| geometry.pieces_of(range.clone())).collect();
    waited.sort_unstable();
    let states = geometry.pieces().map(|piece| match torrent.is_here(piece) {
        true => Cell::Here,
        false if is(piece, &waited) => Cell::Wanted,
        false if is(piece, coming) => Cell::Coming,
        false => Cell::Missing,
    });
    let states: Vec<_> = states.collect();
    let each = count.div_ceil((cells as usize).max(1)).max(1);
    states.chunks(each).map(cell).collect()
}

/// What there is to say of some pieces.
fn cell(pieces: &[Cell]) -> Cell {
    let has = |state| pieces.contains(&state);
    match (has(Cell::Here), has(Cell::Missing)) {
        _ if has(Cell::Wanted) => Cell::Wanted,
        _ if has(Cell::Coming) => Cell::Coming,
        (true, true) => Cell::Partly,
        (true, false) => Cell::Here,
        _ => Cell::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_seen_in_however_large_a_cell() {
        use Cell::{Coming, Here, Missing, Partly, Wanted};
        assert_eq!(cell(&[Here, Coming, Wanted, Missing]), Wanted);
        assert_eq!(cell(&[Here, Coming, Missing]), Coming);
        assert_eq!(cell(&[Here, Missing]), Partly);
        assert_eq!((cell(&[Here, Here]), cell(&[Missing])), (Here, Missing));
    }
}
