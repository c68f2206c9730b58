//! Frames on the wire: four bytes of length, one of type, the rest (BEP 3, 6, 10).
//!
//! A frame's length is judged by its type as soon as the type is there, so a peer that claims a
//! large one makes us wait for nothing and hold nothing.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Message, RawBlock, RawHashes, WireError};
use crate::proto::geometry::MAX_PIECES;
use crate::proto::merkle::{Hash, MAX_MESSAGE_HASHES};

/// The longest block of payload taken, in bytes. Ours are 16 KiB; nobody is known to send more
/// than 128 KiB.
pub const MAX_BLOCK_LEN: u32 = 128 * 1024;

/// The longest payload of an extension message, in bytes: a large handshake. A piece of metadata
/// (16 KiB and a small dictionary) fits in it too.
pub const MAX_EXTENDED_LEN: u32 = 64 * 1024;

/// The longest frame taken, in bytes without the length prefix: the bitfield of the largest
/// torrent. Messages of unknown types may be as long.
pub const MAX_FRAME_LEN: u32 = 1 + MAX_PIECES.div_ceil(8);

/// What of a message names hashes of a tree, in bytes (BEP 52).
const HASH_RANGE_LEN: u32 = 32 + 4 * 4;

/// Message types, as the wire numbers them.
mod id {
    pub const CHOKE: u8 = 0;
    pub const UNCHOKE: u8 = 1;
    pub const INTERESTED: u8 = 2;
    pub const NOT_INTERESTED: u8 = 3;
    pub const HAVE: u8 = 4;
    pub const BITFIELD: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const PIECE: u8 = 7;
    pub const CANCEL: u8 = 8;
    pub const PORT: u8 = 9;
    pub const SUGGEST: u8 = 13;
    pub const HAVE_ALL: u8 = 14;
    pub const HAVE_NONE: u8 = 15;
    pub const REJECT: u8 = 16;
    pub const ALLOWED_FAST: u8 = 17;
    pub const EXTENDED: u8 = 20;
    pub const HASH_REQUEST: u8 = 21;
    pub const HASHES: u8 = 22;
    pub const HASH_REJECT: u8 = 23;
}

/// One frame from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Anything but payload.
    Message(Message),
    /// A block of payload (BEP 3 `piece`). Nothing about it has been checked but its length, which
    /// is at most [`MAX_BLOCK_LEN`].
    Piece {
        /// Piece index.
        piece: u32,
        /// Offset within the piece, in bytes.
        begin: u32,
        /// The payload, still where it was received: it keeps the receive buffer alive.
        data: Bytes,
    },
}

/// Cuts what a peer sends after its handshake into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes still to come of a message of unknown type that has been reported.
    skip: usize,
}

impl Decoder {
    /// A decoder at the beginning of a frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame off the front of `buf`; `None` when more bytes are needed first. `buf`
    /// never has to hold more than `4 +` [`MAX_FRAME_LEN`] bytes.
    ///
    /// # Errors
    /// The peer broke the protocol; the decoder is of no further use.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, WireError> {
        let skipped = self.skip.min(buf.len());
        buf.advance(skipped);
        self.skip -= skipped;

        let Some(length) = frame_length(buf) else { return Ok(None) };
        if length == 0 {
            buf.advance(4);
            return Ok(Some(Frame::Message(Message::KeepAlive)));
        }
        let Some(&id) = buf.get(4) else { return Ok(None) };
        if !check_length(id, length)? {
            buf.advance(5);
            self.skip = length as usize - 1;
            return Ok(Some(Frame::Message(Message::Unknown(id))));
        }
        if buf.len() < 4 + length as usize {
            return Ok(None);
        }
        buf.advance(5);
        let payload = buf.split_to(length as usize - 1).freeze();
        frame(id, payload).map(Some).ok_or(WireError::BadLength { id, length })
    }

    /// How many more bytes than `buf` holds are needed at least before [`Self::decode`] can return
    /// a frame; at most `4 +` [`MAX_FRAME_LEN`], and 0 when it can now (or will find an error).
    pub fn needed(&self, buf: &[u8]) -> usize {
        let Some(mut rest) = buf.get(self.skip..) else {
            return self.skip - buf.len() + 4;
        };
        let have = rest.len();
        if have < 4 {
            return 4 - have;
        }
        let length = rest.get_u32();
        let whole = match (length, rest.first()) {
            (0, _) => 4,
            (_, None) => 5,
            (_, Some(&id)) => match check_length(id, length) {
                Ok(true) => 4 + length as usize,
                Ok(false) | Err(_) => 5,
            },
        };
        whole.saturating_sub(have)
    }
}

/// The length prefix at the front of `buf`, if it is there.
fn frame_length(buf: &[u8]) -> Option<u32> {
    buf.first_chunk().map(|prefix| u32::from_be_bytes(*prefix))
}

/// Judges the length of a frame (type included) by its type; returns whether we know the type.
fn check_length(id: u8, length: u32) -> Result<bool, WireError> {
    use id::*;
    let (least, most) = match id {
        CHOKE | UNCHOKE | INTERESTED | NOT_INTERESTED | HAVE_ALL | HAVE_NONE => (1, 1),
        HAVE | SUGGEST | ALLOWED_FAST => (5, 5),
        REQUEST | CANCEL | REJECT => (13, 13),
        PORT => (3, 3),
        BITFIELD => (1, MAX_FRAME_LEN),
        PIECE => (9, 9 + MAX_BLOCK_LEN),
        EXTENDED => (2, 2 + MAX_EXTENDED_LEN),
        HASH_REQUEST | HASH_REJECT => (1 + HASH_RANGE_LEN, 1 + HASH_RANGE_LEN),
        HASHES => (1 + HASH_RANGE_LEN, 1 + HASH_RANGE_LEN + 32 * MAX_MESSAGE_HASHES as u32),
        _ if length > MAX_FRAME_LEN => return Err(WireError::TooLong { id, length }),
        _ => return Ok(false),
    };
    if length > most && least != most {
        return Err(WireError::TooLong { id, length });
    }
    if length < least || length > most {
        return Err(WireError::BadLength { id, length });
    }
    Ok(true)
}

/// The frame of a known type with this payload; `None` when the payload is too short for it, which
/// [`check_length`] has ruled out.
fn frame(id: u8, mut payload: Bytes) -> Option<Frame> {
    use id::*;
    let message = match id {
        CHOKE => Message::Choke,
        UNCHOKE => Message::Unchoke,
        INTERESTED => Message::Interested,
        NOT_INTERESTED => Message::NotInterested,
        HAVE => Message::Have(payload.try_get_u32().ok()?),
        BITFIELD => Message::Bitfield(payload),
        REQUEST => Message::Request(raw_block(payload)?),
        PIECE => {
            let piece = payload.try_get_u32().ok()?;
            let begin = payload.try_get_u32().ok()?;
            return Some(Frame::Piece { piece, begin, data: payload });
        }
        CANCEL => Message::Cancel(raw_block(payload)?),
        PORT => Message::Port(payload.try_get_u16().ok()?),
        SUGGEST => Message::Suggest(payload.try_get_u32().ok()?),
        HAVE_ALL => Message::HaveAll,
        HAVE_NONE => Message::HaveNone,
        REJECT => Message::Reject(raw_block(payload)?),
        ALLOWED_FAST => Message::AllowedFast(payload.try_get_u32().ok()?),
        EXTENDED => Message::Extended(payload.try_get_u8().ok()?, payload),
        HASH_REQUEST => Message::HashRequest(raw_hashes(&mut payload)?),
        HASHES => {
            let range = raw_hashes(&mut payload)?;
            let (hashes, []) = payload.as_chunks::<32>() else { return None };
            Message::Hashes(range, hashes.to_vec())
        }
        HASH_REJECT => Message::HashReject(raw_hashes(&mut payload)?),
        other => Message::Unknown(other),
    };
    Some(Frame::Message(message))
}

fn raw_block(mut payload: Bytes) -> Option<RawBlock> {
    Some(RawBlock {
        piece: payload.try_get_u32().ok()?,
        begin: payload.try_get_u32().ok()?,
        length: payload.try_get_u32().ok()?,
    })
}

fn raw_hashes(payload: &mut Bytes) -> Option<RawHashes> {
    let mut root = Hash::default();
    payload.try_copy_to_slice(&mut root).ok()?;
    Some(RawHashes {
        root,
        layer: payload.try_get_u32().ok()?,
        index: payload.try_get_u32().ok()?,
        length: payload.try_get_u32().ok()?,
        proof_layers: payload.try_get_u32().ok()?,
    })
}

/// Appends `message` to `out`. [`Message::Unknown`] becomes a message of that type without payload.
pub fn encode(message: &Message, out: &mut BytesMut) {
    use id::*;
    match message {
        Message::KeepAlive => out.put_u32(0),
        Message::Choke => put(out, CHOKE, &[]),
        Message::Unchoke => put(out, UNCHOKE, &[]),
        Message::Interested => put(out, INTERESTED, &[]),
        Message::NotInterested => put(out, NOT_INTERESTED, &[]),
        Message::Have(piece) => put(out, HAVE, &piece.to_be_bytes()),
        Message::Bitfield(bits) => put(out, BITFIELD, bits),
        Message::Request(block) => put_block(out, REQUEST, block),
        Message::Cancel(block) => put_block(out, CANCEL, block),
        Message::Port(port) => put(out, PORT, &port.to_be_bytes()),
        Message::Suggest(piece) => put(out, SUGGEST, &piece.to_be_bytes()),
        Message::HaveAll => put(out, HAVE_ALL, &[]),
        Message::HaveNone => put(out, HAVE_NONE, &[]),
        Message::Reject(block) => put_block(out, REJECT, block),
        Message::AllowedFast(piece) => put(out, ALLOWED_FAST, &piece.to_be_bytes()),
        Message::Extended(extension, payload) => {
            put_header(out, EXTENDED, 1 + payload.len());
            out.put_u8(*extension);
            out.put_slice(payload);
        }
        Message::HashRequest(range) => put_hashes(out, HASH_REQUEST, range, &[]),
        Message::Hashes(range, hashes) => put_hashes(out, HASHES, range, hashes),
        Message::HashReject(range) => put_hashes(out, HASH_REJECT, range, &[]),
        Message::Unknown(id) => put(out, *id, &[]),
    }
}

/// Appends what comes before a block of `length` bytes of payload; the caller sends the payload
/// itself after it.
pub fn encode_piece_header(piece: u32, begin: u32, length: u32, out: &mut BytesMut) {
    put_header(out, id::PIECE, 8 + length as usize);
    out.put_u32(piece);
    out.put_u32(begin);
}

/// Length and type of a message with `payload` bytes after the type. What we send is far below
/// 4 GiB.
fn put_header(out: &mut BytesMut, id: u8, payload: usize) {
    out.put_u32(1 + payload as u32);
    out.put_u8(id);
}

fn put(out: &mut BytesMut, id: u8, payload: &[u8]) {
    put_header(out, id, payload.len());
    out.put_slice(payload);
}

fn put_block(out: &mut BytesMut, id: u8, block: &RawBlock) {
    put_header(out, id, 12);
    out.put_u32(block.piece);
    out.put_u32(block.begin);
    out.put_u32(block.length);
}

fn put_hashes(out: &mut BytesMut, id: u8, range: &RawHashes, hashes: &[Hash]) {
    put_header(out, id, HASH_RANGE_LEN as usize + size_of_val(hashes));
    out.put_slice(&range.root);
    out.put_u32(range.layer);
    out.put_u32(range.index);
    out.put_u32(range.length);
    out.put_u32(range.proof_layers);
    out.put_slice(hashes.as_flattened());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn raw() -> impl Strategy<Value = RawBlock> {
        any::<(u32, u32, u32)>().prop_map(|(piece, begin, length)| RawBlock {
            piece,
            begin,
            length,
        })
    }

    fn raw_hashes() -> impl Strategy<Value = RawHashes> {
        any::<([u8; 32], u32, u32, u32, u32)>().prop_map(
            |(root, layer, index, length, proof_layers)| RawHashes {
                root,
                layer,
                index,
                length,
                proof_layers,
            },
        )
    }

    fn payload(most: usize) -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..=most).prop_map(Bytes::from)
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::KeepAlive),
            Just(Message::Choke),
            Just(Message::Unchoke),
            Just(Message::Interested),
            Just(Message::NotInterested),
            any::<u32>().prop_map(Message::Have),
            payload(300).prop_map(Message::Bitfield),
            raw().prop_map(Message::Request),
            raw().prop_map(Message::Cancel),
            any::<u16>().prop_map(Message::Port),
            any::<u32>().prop_map(Message::Suggest),
            Just(Message::HaveAll),
            Just(Message::HaveNone),
            raw().prop_map(Message::Reject),
            any::<u32>().prop_map(Message::AllowedFast),
            (any::<u8>(), payload(300)).prop_map(|(id, p)| Message::Extended(id, p)),
            raw_hashes().prop_map(Message::HashRequest),
            raw_hashes().prop_map(Message::HashReject),
            (raw_hashes(), vec(any::<[u8; 32]>(), 0..20))
                .prop_map(|(range, hashes)| Message::Hashes(range, hashes)),
            prop_oneof![10u8..13, 18u8..20, 24u8..].prop_map(Message::Unknown),
        ]
    }

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            4 => message().prop_map(Frame::Message),
            1 => (any::<u32>(), any::<u32>(), payload(500))
                .prop_map(|(piece, begin, data)| Frame::Piece { piece, begin, data }),
        ]
    }

    fn encode_frame(frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Message(message) => encode(message, out),
            Frame::Piece { piece, begin, data } => {
                encode_piece_header(*piece, *begin, data.len() as u32, out);
                out.put_slice(data);
            }
        }
    }

    fn prefix(length: u32, id: u8) -> BytesMut {
        let mut buf = BytesMut::new();
        buf.put_u32(length);
        buf.put_u8(id);
        buf
    }

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(
            sent in vec(frames(), 0..20),
            cuts in vec(1usize..200, 1..20),
        ) {
            let mut wire = BytesMut::new();
            sent.iter().for_each(|f| encode_frame(f, &mut wire));
            let (mut decoder, mut buf, mut got) = (Decoder::new(), BytesMut::new(), Vec::new());
            for cut in cuts.iter().cycle() {
                while let Some(frame) = decoder.decode(&mut buf).unwrap() {
                    got.push(frame);
                }
                if wire.is_empty() {
                    break;
                }
                buf.extend_from_slice(&wire.split_to((*cut).min(wire.len())));
            }
            prop_assert_eq!(got, sent);
            prop_assert!(buf.is_empty());
        }

        #[test]
        fn feeding_what_is_needed_gives_the_frames(sent in vec(frames(), 1..10)) {
            let mut wire = BytesMut::new();
            sent.iter().for_each(|f| encode_frame(f, &mut wire));
            let (mut decoder, mut buf, mut got) = (Decoder::new(), BytesMut::new(), Vec::new());
            while got.len() < sent.len() {
                match decoder.needed(&buf) {
                    0 => got.push(decoder.decode(&mut buf).unwrap().unwrap()),
                    n => {
                        prop_assert_eq!(decoder.decode(&mut buf), Ok(None));
                        let n = n.min(decoder.needed(&buf));
                        buf.extend_from_slice(&wire.split_to(n));
                    }
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(
            chunks in vec(vec(prop_oneof![3 => Just(0u8), 1 => 0u8..32, 1 => any::<u8>()], 0..64), 0..20),
        ) {
            let (mut decoder, mut buf) = (Decoder::new(), BytesMut::new());
            'peer: for chunk in chunks {
                buf.extend_from_slice(&chunk);
                loop {
                    prop_assert!(decoder.needed(&buf) <= 4 + MAX_FRAME_LEN as usize);
                    match decoder.decode(&mut buf) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'peer,
                    }
                }
                prop_assert!(decoder.needed(&buf) > 0);
            }
        }

        #[test]
        fn what_is_buffered_is_bounded(
            claims in vec((0u8..32, prop_oneof![1u32..20, 1u32..MAX_FRAME_LEN * 2]), 1..4),
        ) {
            let (mut decoder, mut buf) = (Decoder::new(), BytesMut::new());
            'peer: for (id, length) in claims {
                let mut wire = prefix(length, id);
                wire.resize(4 + length as usize, 0);
                for chunk in wire.chunks(4_096) {
                    buf.extend_from_slice(chunk);
                    prop_assert!(buf.len() <= 4 + MAX_FRAME_LEN as usize);
                    while let Some(_frame) = match decoder.decode(&mut buf) {
                        Ok(frame) => frame,
                        Err(_) => break 'peer,
                    } {}
                }
                prop_assert!(buf.is_empty());
            }
        }

        #[test]
        fn no_length_makes_us_hold_more_than_the_bound(length: u32, id: u8) {
            let mut buf = prefix(length, id);
            if let Ok(None) = Decoder::new().decode(&mut buf) {
                prop_assert!(length <= MAX_FRAME_LEN);
            }
        }
    }

    #[test]
    fn a_liars_length_is_refused_with_the_type() {
        for id in 0..=255 {
            let length = u32::MAX;
            let got = Decoder::new().decode(&mut prefix(length, id));
            assert!(
                matches!(got, Err(WireError::TooLong { .. } | WireError::BadLength { .. })),
                "{id}: {got:?}"
            );
        }
        let length = 9 + MAX_BLOCK_LEN;
        assert_eq!(Decoder::new().decode(&mut prefix(length, 7)), Ok(None));
        let length = length + 1;
        let err = WireError::TooLong { id: 7, length };
        assert_eq!(Decoder::new().decode(&mut prefix(length, 7)), Err(err));
    }

    #[test]
    fn fixed_messages_have_exactly_their_length() {
        for (id, right) in
            [(0u8, 1u32), (4, 5), (6, 13), (8, 13), (9, 3), (14, 1), (16, 13), (17, 5)]
        {
            for length in (1..20).filter(|l| *l != right) {
                let got = Decoder::new().decode(&mut prefix(length, id));
                assert_eq!(got, Err(WireError::BadLength { id, length }));
            }
        }
    }

    #[test]
    fn an_unknown_message_is_reported_and_its_payload_skipped() {
        let mut buf = prefix(1_000, 24);
        let mut decoder = Decoder::new();
        let unknown = Some(Frame::Message(Message::Unknown(24)));
        assert_eq!(decoder.decode(&mut buf), Ok(unknown));
        for _ in 0..9 {
            buf.put_slice(&[7; 100]);
            assert_eq!(decoder.decode(&mut buf), Ok(None));
            assert!(buf.is_empty());
        }
        buf.put_slice(&[7; 99]);
        encode(&Message::Have(3), &mut buf);
        assert_eq!(decoder.decode(&mut buf), Ok(Some(Frame::Message(Message::Have(3)))));
    }

    #[test]
    fn a_block_is_not_copied() {
        let mut buf = BytesMut::new();
        encode_piece_header(1, 16_384, 5, &mut buf);
        buf.put_slice(b"hello");
        let at = buf[13..].as_ptr();
        let Ok(Some(Frame::Piece { data, .. })) = Decoder::new().decode(&mut buf) else {
            panic!("no block");
        };
        assert_eq!((data.as_ptr(), &data[..]), (at, &b"hello"[..]));
    }
}
