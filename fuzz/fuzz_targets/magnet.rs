//! Any text is a magnet link that is written as it is read, or refused in one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::metainfo::Magnet;

fuzz_target!(|text: &str| {
    let _ = Magnet::from_bare_hash(text);
    match Magnet::parse(text) {
        Ok(magnet) => {
            // Written out, every character may take more room than it came with.
            let written = magnet.to_string();
            if written.len() <= 64 * 1024 {
                assert_eq!(Magnet::parse(&written), Ok(magnet));
            }
        }
        Err(e) => assert!(!e.to_string().contains('\n')),
    }
});
