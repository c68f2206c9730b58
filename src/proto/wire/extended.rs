//! The extension protocol (BEP 10) and its small messages: the handshake, pieces of metadata
//! (`ut_metadata`, BEP 9) and `lt_donthave` (BEP 54).
//!
//! Everything here is the payload of a [`super::Message::Extended`]. A peer numbers the extensions
//! it speaks in its handshake, and we send with its numbers and receive with ours.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};

use super::WireError;
use crate::proto::bencode::{Dict, DictWriter, Limits};

/// The number of the handshake itself, for both sides.
pub const HANDSHAKE_ID: u8 = 0;
/// Our number for `ut_metadata`.
pub const UT_METADATA_ID: u8 = 1;
/// Our number for `ut_pex`.
pub const UT_PEX_ID: u8 = 2;
/// Our number for `lt_donthave`.
pub const LT_DONTHAVE_ID: u8 = 3;

/// The unit in which the info dictionary is handed over, in bytes (BEP 9).
pub const METADATA_PIECE_LEN: u32 = 16 * 1024;

/// How much of a client's name is kept, in characters.
const MAX_CLIENT_CHARS: usize = 64;

/// The extended handshake. What is absent or makes no sense is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtendedHandshake {
    /// The sender's number for `ut_metadata` (BEP 9), never 0.
    pub ut_metadata: Option<u8>,
    /// The sender's number for `ut_pex` (BEP 11); 0 is sent to take it back, and read as absent.
    pub ut_pex: Option<u8>,
    /// The sender's number for `lt_donthave` (BEP 54), never 0.
    pub donthave: Option<u8>,
    /// The port the sender listens on (`p`), never 0.
    pub listen_port: Option<u16>,
    /// The sender's client and version (`v`): printable, at most 64 characters.
    pub client: Option<String>,
    /// How many requests the sender queues (`reqq`).
    pub reqq: Option<u32>,
    /// The length of the info dictionary in bytes, from a peer that has it; never 0, unchecked
    /// otherwise.
    pub metadata_size: Option<u32>,
    /// The receiver's address as the sender sees it.
    pub yourip: Option<IpAddr>,
    /// The sender will not download (BEP 21): a seeder or a partial seeder.
    pub upload_only: bool,
}

impl ExtendedHandshake {
    /// A handshake that offers our extensions by our numbers; with `pex` false (a private torrent,
    /// BEP 27) not `ut_pex`, also if an earlier handshake did.
    pub fn ours(pex: bool) -> Self {
        Self {
            ut_metadata: Some(UT_METADATA_ID),
            ut_pex: Some(if pex { UT_PEX_ID } else { 0 }),
            donthave: Some(LT_DONTHAVE_ID),
            ..Self::default()
        }
    }

    /// Reads the payload of extension message 0. What follows the dictionary is not looked at, since
    /// some clients leave a newline there.
    ///
    /// # Errors
    /// [`WireError::BadExtension`] when it does not begin with a bencoded dictionary of at most 64 KiB.
    /// Values of the wrong kind or out of range are taken as absent.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let (dict, _) = Dict::parse_prefix(payload, Limits::MESSAGE)
            .map_err(|_| WireError::BadExtension("handshake"))?;
        let m = dict.dict(b"m");
        let extension = |name: &[u8]| m.and_then(|m| positive(m, name));
        Ok(Self {
            ut_metadata: extension(b"ut_metadata"),
            ut_pex: extension(b"ut_pex"),
            donthave: extension(b"lt_donthave"),
            listen_port: positive(dict, b"p"),
            client: dict.bytes(b"v").and_then(client_name),
            reqq: positive(dict, b"reqq"),
            metadata_size: positive(dict, b"metadata_size"),
            yourip: dict.bytes(b"yourip").and_then(address),
            upload_only: dict.int(b"upload_only").is_some_and(|n| n != 0),
        })
    }

    /// The payload to send as extension message 0.
    pub fn encode(&self) -> Bytes {
        let mut m = DictWriter::new();
        let extensions: [(&[u8], _); 3] = [
            (b"ut_metadata", self.ut_metadata),
            (b"ut_pex", self.ut_pex),
            (b"lt_donthave", self.donthave),
        ];
        for (name, id) in extensions {
            put_int(&mut m, name, id);
        }
        let mut dict = DictWriter::new();
        dict.raw(b"m", m.finish());
        put_int(&mut dict, b"p", self.listen_port);
        put_int(&mut dict, b"reqq", self.reqq);
        put_int(&mut dict, b"metadata_size", self.metadata_size);
        put_int(&mut dict, b"upload_only", self.upload_only.then_some(1));
        if let Some(client) = &self.client {
            dict.bytes(b"v", client.as_bytes());
        }
        if let Some(ip) = self.yourip {
            match ip {
                IpAddr::V4(ip) => dict.bytes(b"yourip", &ip.octets()),
                IpAddr::V6(ip) => dict.bytes(b"yourip", &ip.octets()),
            };
        }
        dict.finish().into()
    }
}

fn put_int(dict: &mut DictWriter, key: &[u8], value: Option<impl Into<i64>>) {
    if let Some(value) = value {
        dict.int(key, value.into());
    }
}

/// The number with this key, if it is above 0 and fits.
fn positive<T: TryFrom<i64>>(dict: Dict<'_>, key: &[u8]) -> Option<T> {
    dict.int(key).filter(|n| *n > 0)?.try_into().ok()
}

/// A client's name, fit to be shown.
fn client_name(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let name: String = text.chars().filter(|c| !c.is_control()).take(MAX_CLIENT_CHARS).collect();
    (!name.is_empty()).then_some(name)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A message of `ut_metadata` (BEP 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataMessage {
    /// Asks for a piece of the info dictionary.
    Request {
        /// Its number, unchecked.
        piece: u32,
    },
    /// A piece of the info dictionary.
    Data {
        /// Its number, unchecked.
        piece: u32,
        /// The length of the whole dictionary in bytes, as the sender says; 0 when it does not.
        total_size: u32,
        /// Its bytes, at most [`METADATA_PIECE_LEN`].
        data: Bytes,
    },
    /// A piece will not be sent.
    Reject {
        /// Its number, unchecked.
        piece: u32,
    },
    /// A type of message that BEP 9 does not have, to be ignored.
    Unknown,
}

impl MetadataMessage {
    /// Reads the payload of a `ut_metadata` message; the data is not copied.
    ///
    /// # Errors
    /// [`WireError::BadExtension`] when it does not begin with a bencoded dictionary that has a
    /// type and a piece, or more than [`METADATA_PIECE_LEN`] bytes follow it.
    pub fn parse(payload: &Bytes) -> Result<Self, WireError> {
        const BAD: WireError = WireError::BadExtension("ut_metadata");
        let (dict, rest) = Dict::parse_prefix(payload, Limits::MESSAGE).map_err(|_| BAD)?;
        let piece = || dict.int(b"piece").and_then(|n| u32::try_from(n).ok()).ok_or(BAD);
        match dict.int(b"msg_type").ok_or(BAD)? {
            0 => Ok(Self::Request { piece: piece()? }),
            1 if rest.len() > METADATA_PIECE_LEN as usize => Err(BAD),
            1 => Ok(Self::Data {
                piece: piece()?,
                total_size: positive(dict, b"total_size").unwrap_or(0),
                data: payload.slice_ref(rest),
            }),
            2 => Ok(Self::Reject { piece: piece()? }),
            _ => Ok(Self::Unknown),
        }
    }

    /// The payload to send under the receiver's number for `ut_metadata`. [`Self::Unknown`] gives
    /// a message of a type that receivers ignore.
    pub fn encode(&self) -> Bytes {
        let mut dict = DictWriter::new();
        match self {
            Self::Request { piece } => dict.int(b"msg_type", 0).int(b"piece", (*piece).into()),
            Self::Data { piece, total_size, .. } => dict
                .int(b"msg_type", 1)
                .int(b"piece", (*piece).into())
                .int(b"total_size", (*total_size).into()),
            Self::Reject { piece } => dict.int(b"msg_type", 2).int(b"piece", (*piece).into()),
            Self::Unknown => dict.int(b"msg_type", 255),
        };
        let mut out = BytesMut::from(&dict.finish()[..]);
        if let Self::Data { data, .. } = self {
            out.put_slice(data);
        }
        out.freeze()
    }

    /// The answer to a request for `piece` of the info dictionary `info`: its data, or a rejection
    /// where there is no such piece (or `info` is `None`: we do not have it yet).
    pub fn answer(info: Option<&[u8]>, piece: u32) -> Self {
        let at = piece as usize * METADATA_PIECE_LEN as usize;
        match info.and_then(|info| Some((info.len(), info.get(at..).filter(|i| !i.is_empty())?))) {
            Some((total, rest)) => Self::Data {
                piece,
                total_size: total as u32,
                data: Bytes::copy_from_slice(
                    rest.get(..METADATA_PIECE_LEN as usize).unwrap_or(rest),
                ),
            },
            None => Self::Reject { piece },
        }
    }
}

/// Reads the payload of `lt_donthave` (BEP 54): the number, unchecked, of a piece that the sender
/// no longer has.
///
/// # Errors
/// [`WireError::BadExtension`] when it is not four bytes.
pub fn parse_donthave(payload: &[u8]) -> Result<u32, WireError> {
    let piece = payload.try_into().map_err(|_| WireError::BadExtension("lt_donthave"))?;
    Ok(u32::from_be_bytes(piece))
}

/// The payload of `lt_donthave` for `piece`.
pub fn encode_donthave(piece: u32) -> Bytes {
    Bytes::copy_from_slice(&piece.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option::of;
    use proptest::prelude::*;

    fn handshake() -> impl Strategy<Value = ExtendedHandshake> {
        let ids = (of(1u8..), of(1u8..), of(1u8..));
        let rest = (of(1u16..), of("[a-zA-Z0-9 ./é-]{1,64}"), of(1u32..), of(1u32..));
        (ids, rest, any::<(Option<IpAddr>, bool)>()).prop_map(
            |((ut_metadata, ut_pex, donthave), (listen_port, client, reqq, metadata_size), end)| {
                ExtendedHandshake {
                    ut_metadata,
                    ut_pex,
                    donthave,
                    listen_port,
                    client,
                    reqq,
                    metadata_size,
                    yourip: end.0,
                    upload_only: end.1,
                }
            },
        )
    }

    fn metadata_message() -> impl Strategy<Value = MetadataMessage> {
        prop_oneof![
            any::<u32>().prop_map(|piece| MetadataMessage::Request { piece }),
            any::<u32>().prop_map(|piece| MetadataMessage::Reject { piece }),
            Just(MetadataMessage::Unknown),
            (any::<(u32, u32)>(), prop::collection::vec(any::<u8>(), 0..600)).prop_map(
                |((piece, total_size), data)| MetadataMessage::Data {
                    piece,
                    total_size,
                    data: data.into()
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn handshakes_are_read_as_written(sent in handshake()) {
            prop_assert_eq!(ExtendedHandshake::parse(&sent.encode()), Ok(sent));
        }

        #[test]
        fn metadata_messages_are_read_as_written(sent in metadata_message()) {
            prop_assert_eq!(MetadataMessage::parse(&sent.encode()), Ok(sent));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = ExtendedHandshake::parse(&bytes);
            let _ = parse_donthave(&bytes);
            if let Ok(MetadataMessage::Data { data, .. }) = MetadataMessage::parse(&bytes.into()) {
                prop_assert!(data.len() <= METADATA_PIECE_LEN as usize);
            }
        }

        #[test]
        fn a_handshake_with_bytes_changed_is_read_or_refused(
            sent in handshake(), at: prop::sample::Index, byte: u8,
        ) {
            let mut bytes = sent.encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = ExtendedHandshake::parse(&bytes);
        }

        #[test]
        fn donthave_is_read_as_written(piece: u32) {
            prop_assert_eq!(parse_donthave(&encode_donthave(piece)), Ok(piece));
        }

        #[test]
        fn answers_add_up_to_the_dictionary(info in prop::collection::vec(any::<u8>(), 1..50_000)) {
            let mut got = Vec::new();
            for piece in 0.. {
                match MetadataMessage::answer(Some(&info), piece) {
                    MetadataMessage::Data { data, total_size, .. } => {
                        prop_assert_eq!(total_size as usize, info.len());
                        got.extend_from_slice(&data);
                    }
                    other => {
                        prop_assert_eq!(other, MetadataMessage::Reject { piece });
                        break;
                    }
                }
            }
            prop_assert_eq!(got, info);
        }
    }

    #[test]
    fn values_that_make_no_sense_are_absent() {
        let dict = b"d1:md11:lt_donthavei256e11:ut_metadatai0e6:ut_pexi-1ee13:metadata_sizei-5e\
            1:p3:abc4:reqqi99999999999e1:v0:6:yourip3:abce";
        assert_eq!(ExtendedHandshake::parse(dict), Ok(ExtendedHandshake::default()));
        assert_eq!(ExtendedHandshake::parse(b"de"), Ok(ExtendedHandshake::default()));
        assert_eq!(ExtendedHandshake::parse(b"le"), Err(WireError::BadExtension("handshake")));
    }

    #[test]
    fn what_follows_a_handshake_is_not_looked_at() {
        let sent = ExtendedHandshake::ours(true);
        let bytes = [&sent.encode()[..], b"\n"].concat();
        assert_eq!(ExtendedHandshake::parse(&bytes), Ok(sent));
    }

    #[test]
    fn a_clients_name_is_cleaned_and_cut() {
        let parsed = ExtendedHandshake::parse(b"d1:v8:a\x1b[1m\r\nbe").unwrap();
        assert_eq!(parsed.client.as_deref(), Some("a[1mb"));
        let long = DictWriter::new().bytes(b"v", &[b'x'; 1000]).finish();
        assert_eq!(ExtendedHandshake::parse(&long).unwrap().client, Some("x".repeat(64)));
    }

    #[test]
    fn data_longer_than_a_piece_is_refused() {
        let mut bytes = b"d8:msg_typei1e5:piecei0e10:total_sizei99999ee".to_vec();
        bytes.resize(bytes.len() + METADATA_PIECE_LEN as usize, 7);
        let whole = Bytes::from(bytes.clone());
        assert!(matches!(
            MetadataMessage::parse(&whole),
            Ok(MetadataMessage::Data { piece: 0, total_size: 99_999, data })
                if data.len() == METADATA_PIECE_LEN as usize
        ));
        bytes.push(7);
        let bad = Err(WireError::BadExtension("ut_metadata"));
        assert_eq!(MetadataMessage::parse(&bytes.into()), bad);
    }

    #[test]
    fn what_we_do_not_have_is_rejected() {
        assert_eq!(MetadataMessage::answer(None, 3), MetadataMessage::Reject { piece: 3 });
        let beyond = MetadataMessage::answer(Some(b"de"), u32::MAX);
        assert_eq!(beyond, MetadataMessage::Reject { piece: u32::MAX });
    }
}
