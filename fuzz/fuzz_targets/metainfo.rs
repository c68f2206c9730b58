//! Any bytes are a torrent that makes sense, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::metainfo::layout::Layout;
use p2pfs::proto::metainfo::{Info, Magnet, Metainfo};

fuzz_target!(|data: &[u8]| {
    if let Ok(info) = Info::parse(data) {
        let mut end = 0;
        for file in &info.files {
            assert_eq!(file.offset, end);
            end += file.length;
        }
        assert_eq!(end, info.geometry.total());
        let pieces = if info.is_v2_only() { 0 } else { info.geometry.piece_count() as usize };
        assert_eq!(info.piece_hashes.len(), pieces);
        if let Some(v2) = &info.v2 {
            let piece_length = u64::from(info.geometry.piece_length());
            assert_eq!(v2.roots.len(), info.files.len());
            for (file, root) in info.files.iter().zip(&v2.roots) {
                assert_eq!(root.is_some(), !file.pad && file.length > 0);
                assert!(root.is_none() || file.offset.is_multiple_of(piece_length));
            }
        }
        assert_eq!(Layout::new(&info), Layout::new(&info));
    }
    if let Ok(metainfo) = Metainfo::parse(data) {
        let magnet = metainfo.magnet();
        let read = Magnet::parse(&magnet.to_string()).map(|m| (m.info_hash, m.info_hash_v2));
        assert_eq!(read, Ok((magnet.info_hash, magnet.info_hash_v2)));
        assert_eq!(Metainfo::parse(&metainfo.to_bytes()), Ok(metainfo));
    }
});
