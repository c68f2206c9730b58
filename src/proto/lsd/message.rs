//! The datagrams of local discovery: a request in the style of HTTP, multicast (BEP 14).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::proto::ids::InfoHash;

/// The port of both groups.
const PORT: u16 = 6771;

/// The longest datagram sent, in bytes (BEP 14): it fits one frame of any network.
pub const MAX_SENT: usize = 1_400;

/// The longest datagram read, in bytes: others may be less careful.
pub const MAX_RECEIVED: usize = 2_048;

/// Torrents in one datagram: as many as fit into [`MAX_SENT`].
pub const MAX_TORRENTS: usize = 25;

/// Torrents read from one datagram: those that fit into [`MAX_RECEIVED`].
const MAX_TORRENTS_READ: usize = 40;

/// The longest cookie looked at, in bytes. Ours has eight; a longer one tells nothing.
const MAX_COOKIE: usize = 64;

/// How a datagram begins.
const REQUEST: &[u8] = b"BT-SEARCH * HTTP/1.1";

/// The group that is spoken to: one for each address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// 239.192.152.143
    V4,
    /// ff15::efc0:988f
    V6,
}

impl Group {
    /// Its IPv4 address.
    pub const V4_ADDR: Ipv4Addr = Ipv4Addr::new(239, 192, 152, 143);

    /// Its IPv6 address.
    pub const V6_ADDR: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f);

    /// Where to listen and send to.
    pub fn addr(self) -> SocketAddr {
        match self {
            Self::V4 => (Self::V4_ADDR, PORT).into(),
            Self::V6 => (Self::V6_ADDR, PORT).into(),
        }
    }
}

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The TCP port where it listens, never 0.
    pub port: u16,
    /// Torrents that it has or wants, at least one.
    pub torrents: Vec<InfoHash>,
    /// By which it knows its own datagrams.
    pub cookie: Option<Vec<u8>>,
}

impl Message {
    /// The datagram for a group; at most [`MAX_TORRENTS`] torrents are named.
    pub fn encode(&self, group: Group) -> Vec<u8> {
        let mut out = REQUEST.to_vec();
        let mut line = |name: &str, value: &[u8]| {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
        };
        line("Host", group.addr().to_string().as_bytes());
        line("Port", self.port.to_string().as_bytes());
        for hash in self.torrents.iter().take(MAX_TORRENTS) {
            line("Infohash", hash.to_string().as_bytes());
        }
        if let Some(cookie) = &self.cookie {
            line("cookie", cookie);
        }
        out.extend_from_slice(b"\r\n\r\n\r\n");
        out
    }

    /// Reads a datagram. What is not understood in it is left out; `None` if no port or no torrent
    /// is left.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() > MAX_RECEIVED {
            return None;
        }
        let mut lines = datagram.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        if !lines.next()?.eq_ignore_ascii_case(REQUEST) {
            return None;
        }
        let mut port: Option<u16> = None;
        let (mut cookie, mut torrents) = (None, Vec::new());
        for line in lines.take_while(|line| !line.is_empty()) {
            let Some((name, value)) = header(line) else { continue };
            if name.eq_ignore_ascii_case(b"port") {
                port = port.or_else(|| text(value)?.parse().ok());
            } else if name.eq_ignore_ascii_case(b"cookie") && value.len() <= MAX_COOKIE {
                cookie = Some(value.to_vec());
            } else if name.eq_ignore_ascii_case(b"infohash") && torrents.len() < MAX_TORRENTS_READ {
                torrents.extend(text(value).and_then(|text| text.parse::<InfoHash>().ok()));
            }
        }
        let port = port.filter(|port| *port != 0)?;
        (!torrents.is_empty()).then_some(Self { port, torrents, cookie })
    }
}

/// The name and the value of a header.
fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    Some((name.trim_ascii(), value.get(1..)?.trim_ascii()))
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(count: usize) -> Message {
        let torrents = (0..count).map(|n| InfoHash::new([n as u8; 20])).collect();
        Message { port: u16::MAX, torrents, cookie: Some(b"01234567".to_vec()) }
    }

    #[test]
    fn a_datagram_is_written_as_the_bep_has_it() {
        let message = Message { port: 6881, ..message(2) };
        let (zeros, ones) = ("00".repeat(20), "01".repeat(20));
        assert_eq!(
            String::from_utf8(message.encode(Group::V4)).unwrap(),
            format!(
                "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\n\
                 Infohash: {zeros}\r\nInfohash: {ones}\r\ncookie: 01234567\r\n\r\n\r\n"
            )
        );
        let v6 = String::from_utf8(message.encode(Group::V6)).unwrap();
        assert!(v6.contains("Host: [ff15::efc0:988f]:6771\r\n"), "{v6}");
    }

    #[test]
    fn as_many_torrents_as_fit_are_named() {
        let (full, more) = (message(MAX_TORRENTS), message(MAX_TORRENTS + 1));
        let line = "Infohash: ".len() + 40 + 2;
        for group in [Group::V4, Group::V6] {
            let length = full.encode(group).len();
            assert!(length <= MAX_SENT && length + line > MAX_SENT, "{length}");
            assert_eq!(more.encode(group), full.encode(group));
        }
    }

    #[test]
    fn others_write_it_differently() {
        let hash = "AB".repeat(20);
        let said = format!(
            "bt-search * http/1.1\nHOST:239.192.152.143:6771\nport:1\nX: \u{e9}\nnonsense\n\
             Infohash: too short\nINFOHASH:{hash}\n\nInfohash: {}\n",
            "00".repeat(20)
        );
        let expected = Message { port: 1, torrents: vec![InfoHash::new([0xab; 20])], cookie: None };
        assert_eq!(Message::parse(said.as_bytes()), Some(expected));
    }

    #[test]
    fn what_names_no_port_or_torrent_is_nothing() {
        let hash = "00".repeat(20);
        for bad in [
            String::new(),
            format!("M-SEARCH * HTTP/1.1\r\nPort: 1\r\nInfohash: {hash}\r\n\r\n"),
            format!("BT-SEARCH * HTTP/1.1\r\nInfohash: {hash}\r\n\r\n"),
            format!("BT-SEARCH * HTTP/1.1\r\nPort: 0\r\nInfohash: {hash}\r\n\r\n"),
            format!("BT-SEARCH * HTTP/1.1\r\nPort: 65536\r\nInfohash: {hash}\r\n\r\n"),
            format!("BT-SEARCH * HTTP/1.1\r\nPort: -1\r\nInfohash: {hash}\r\n\r\n"),
            "BT-SEARCH * HTTP/1.1\r\nPort: 1\r\nInfohash: 00\r\n\r\n".to_owned(),
        ] {
            assert_eq!(Message::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_long_datagram_is_not_read() {
        let mut datagram = message(1).encode(Group::V4);
        datagram.resize(MAX_RECEIVED, b' ');
        assert!(Message::parse(&datagram).is_some());
        datagram.push(b' ');
        assert_eq!(Message::parse(&datagram), None);
    }

    #[test]
    fn a_cookie_that_is_too_long_is_none() {
        let message = Message { cookie: Some(vec![b'x'; MAX_COOKIE + 1]), ..message(1) };
        assert_eq!(Message::parse(&message.encode(Group::V4)).unwrap().cookie, None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            port in 1u16..,
            hashes in proptest::collection::vec(any::<[u8; 20]>(), 1..=MAX_TORRENTS),
            cookie in proptest::option::of("[!-~]{1,64}"),
            v6: bool,
        ) {
            let torrents = hashes.into_iter().map(InfoHash::new).collect();
            let message = Message { port, torrents, cookie: cookie.map(String::into_bytes) };
            let group = if v6 { Group::V6 } else { Group::V4 };
            prop_assert_eq!(Message::parse(&message.encode(group)), Some(message));
        }

        #[test]
        fn any_bytes_are_read_without_harm(
            rest in proptest::collection::vec(any::<u8>(), 0..2_200),
            with_request: bool,
        ) {
            let head = if with_request { REQUEST } else { b"" };
            if let Some(message) = Message::parse(&[head, b"\r\n", &rest].concat()) {
                prop_assert!(message.port != 0);
                prop_assert!((1..=MAX_TORRENTS_READ).contains(&message.torrents.len()));
            }
        }

        #[test]
        fn any_headers_are_read_within_bounds(
            lines in proptest::collection::vec(
                "(Port: [0-9-]{0,6}|Infohash: [0-9a-f]{38,42}|cookie: \\PC{0,80}|\\PC{0,20})",
                0..45,
            ),
        ) {
            let said = format!("BT-SEARCH * HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
            if let Some(message) = Message::parse(said.as_bytes()) {
                prop_assert!(message.port != 0);
                prop_assert!((1..=MAX_TORRENTS_READ).contains(&message.torrents.len()));
                prop_assert!(message.cookie.is_none_or(|cookie| cookie.len() <= MAX_COOKIE));
            }
        }
    }
}
