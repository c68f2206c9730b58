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
        assert_eq!(info.piece_hashes.len(), info.geometry.piece_count() as usize);
        assert_eq!(Layout::new(&info), Layout::new(&info));
    }
    if let Ok(metainfo) = Metainfo::parse(data) {
        let magnet = metainfo.magnet();
        assert_eq!(Magnet::parse(&magnet.to_string()).map(|m| m.info_hash), Ok(magnet.info_hash));
        assert_eq!(Metainfo::parse(&metainfo.to_bytes()), Ok(metainfo));
    }
});
