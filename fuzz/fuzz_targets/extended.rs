//! Extended handshakes, `ut_pex` and `lt_donthave`: any bytes are read or refused, and what was
//! read is read again as it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::wire::extended::{ExtendedHandshake, parse_donthave};
use p2pfs::proto::wire::pex::PexMessage;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(handshake) = ExtendedHandshake::parse(bytes) {
        assert_eq!(ExtendedHandshake::parse(&handshake.encode()), Ok(handshake));
    }
    if let Ok(pex) = PexMessage::parse(bytes) {
        assert_eq!(PexMessage::parse(&pex.encode()), Ok(pex));
    }
    let _ = parse_donthave(bytes);
});
