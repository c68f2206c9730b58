//! The stream after the handshake: any bytes, in any pieces, give frames or one error, and what
//! has to be buffered stays bounded.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use p2pfs::proto::wire::codec::{Decoder, Frame, MAX_BLOCK_LEN, MAX_FRAME_LEN, encode};

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let (mut decoder, mut buf) = (Decoder::new(), BytesMut::new());
    for chunk in bytes.chunks(usize::from(step) + 1) {
        buf.extend_from_slice(chunk);
        loop {
            let needed = decoder.needed(&buf);
            assert!(needed <= 4 + MAX_FRAME_LEN as usize);
            match decoder.decode(&mut buf) {
                Ok(Some(Frame::Piece { data, .. })) => {
                    assert!(data.len() <= MAX_BLOCK_LEN as usize)
                }
                Ok(Some(Frame::Message(message))) => {
                    let mut again = BytesMut::new();
                    encode(&message, &mut again);
                    let decoded = Decoder::new().decode(&mut again);
                    assert_eq!(decoded, Ok(Some(Frame::Message(message))));
                }
                Ok(None) => break assert!(needed > 0),
                Err(_) => return,
            }
        }
    }
});
