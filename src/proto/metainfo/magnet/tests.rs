use proptest::prelude::*;

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef01234567";
const BASE32: &str = "AERUKZ4JVPG66AJDIVTYTK6N54ASGRLH";

fn with(rest: &str) -> Magnet {
    Magnet::parse(&format!("magnet:?xt=urn:btih:{HEX}{rest}")).unwrap()
}

#[test]
fn the_info_hash_is_hex_or_base32_of_either_case() {
    let expected: InfoHash = HEX.parse().unwrap();
    for link in [
        format!("magnet:?xt=urn:btih:{HEX}"),
        format!("  MAGNET:?XT=URN:BTIH:{}\n", HEX.to_uppercase()),
        format!("magnet:?xt=urn:btih:{BASE32}"),
        format!("magnet:?xt.1=urn:btih:{}", BASE32.to_lowercase()),
        format!("magnet:?xt=urn%3Abtih%3A{HEX}"),
        format!("magnet:?dn=x&xt=urn:sha1:YNCKHTQCWBTRNJIV4WNAE52SJUQCZO5C&xt=urn:btih:{HEX}"),
        format!("magnet:?xt=urn:btmh:1220{HEX}&xt=urn:btih:{HEX}"),
    ] {
        assert_eq!(Magnet::parse(&link).map(|m| m.info_hash), Ok(expected), "{link}");
    }
}

#[test]
fn a_link_may_have_either_hash_or_both() {
    let (v1, v2) = (HEX.parse().unwrap(), InfoHashV2::new([0xab; 32]));
    for (topics, has) in [
        (format!("xt=urn:btih:{HEX}"), (Some(v1), None)),
        (format!("xt=urn:btmh:1220{v2}"), (None, Some(v2))),
        (format!("xt.1=urn:btmh:1220{v2}&xt.2=urn:btih:{HEX}"), (Some(v1), Some(v2))),
        (format!("xt=urn:btih:0&xt=URN:BTMH:1220{v2}"), (None, Some(v2))),
    ] {
        let magnet = Magnet::parse(&format!("magnet:?{topics}")).unwrap();
        assert_eq!((magnet.info_hash_v1(), magnet.info_hash_v2), has);
        assert_eq!(magnet.info_hash, has.0.unwrap_or(v2.truncated()));
        assert_eq!(Magnet::parse(&magnet.to_string()), Ok(magnet));
    }
}

#[test]
fn every_parameter_is_read() {
    let magnet = with(concat!(
        "&dn=a%20b+c&tr=http%3A%2F%2Ft.example%2Fannounce&tr.1=udp://u.example:6969",
        "&tr=http%3A%2F%2Ft.example%2Fannounce&ws=http://w.example/f&x.pe=192.0.2.1:6881",
        "&x.pe=[2001:db8::1]:6882&x.pe=peer.example:1&so=0,2,4-6&unknown=1",
    ));
    assert_eq!(magnet.name.as_deref(), Some("a b c"));
    assert_eq!(magnet.trackers, ["http://t.example/announce", "udp://u.example:6969"]);
    assert_eq!(magnet.web_seeds, ["http://w.example/f"]);
    assert_eq!(magnet.peers, ["192.0.2.1:6881", "[2001:db8::1]:6882", "peer.example:1"]);
    assert_eq!(magnet.select, [0..=0, 2..=2, 4..=6]);
}

#[test]
fn a_link_from_the_text_of_a_web_page_is_read() {
    let magnet = with("&amp;dn=x&amp;tr=udp://u.example:6969&amp;x.pe=192.0.2.1:6881");
    assert_eq!(magnet, with("&dn=x&tr=udp://u.example:6969&x.pe=192.0.2.1:6881"));
}

#[test]
fn bad_peers_and_ranges_are_ignored() {
    let bad =
        "&x.pe=1.2.3:5&x.pe=nope&x.pe=:1&x.pe=a:0&x.pe=a:65536&x.pe=a:+1&x.pe=a%20b:1&x.pe=[::1]";
    let magnet = with(&format!("{bad}&so=x,3-1,-2,5,99999999999&tr=&ws=%0a"));
    assert_eq!(magnet.peers, Vec::<String>::new());
    assert_eq!(magnet.select, [5..=5]);
    assert_eq!((magnet.trackers.len(), magnet.web_seeds.len()), (0, 0));
}

#[test]
fn lists_are_bounded() {
    let many = (0..5000).map(|i| format!("&tr=u:{i}")).collect::<String>();
    assert_eq!(with(&many).trackers.len(), 200);
    let many = (0..3000).map(|i| format!("&x.pe=h:{}", i + 1)).collect::<String>();
    assert_eq!(with(&many).peers.len(), MAX_PEERS);
    assert_eq!(with(&format!("&so={}", "1,".repeat(9000))).select.len(), MAX_RANGES);
    let long = format!("magnet:?xt=urn:btih:{HEX}&dn={}", "x".repeat(MAX_LEN));
    assert!(matches!(Magnet::parse(&long), Err(MagnetError::TooLong(_))));
}

#[test]
fn what_is_no_usable_link_is_refused_in_one_line() {
    let v2 = "ab".repeat(32);
    for (link, expected) in [
        (String::new(), MagnetError::NotMagnet(String::new())),
        ("http://x\n".into(), MagnetError::NotMagnet("http://x".into())),
        ("magnet:".into(), MagnetError::NotMagnet("magnet:".into())),
        ("magnet:?dn=x".into(), MagnetError::NoInfoHash),
        ("magnet:?xt=urn:btih:0%0a".into(), MagnetError::BadInfoHash("0".into())),
        ("magnet:?xt=urn:btih:0%0a1".into(), MagnetError::BadInfoHash("0\\n1".into())),
        (
            format!("magnet:?xt=urn:btmh:1114{v2}"),
            MagnetError::BadInfoHash(format!("1114{}…", &v2[4..60])),
        ),
    ] {
        let error = Magnet::parse(&link).unwrap_err();
        assert_eq!(error, expected, "{link}");
        assert!(!error.to_string().contains('\n'));
    }
    assert!(Magnet::parse(&"é".repeat(100)).unwrap_err().to_string().contains('…'));
}

#[test]
fn a_bare_hash_is_a_magnet_of_its_own() {
    assert_eq!(Magnet::from_bare_hash(HEX), Ok(with("")));
    assert_eq!(Magnet::from_bare_hash(&format!(" {}\n", BASE32.to_lowercase())), Ok(with("")));
    let v2 = InfoHashV2::new([0xab; 32]);
    assert_eq!(Magnet::from_bare_hash(&v2.to_string()), Ok(v2.into()));
    assert_eq!(Magnet::from_bare_hash(&format!("1220{v2}")), Ok(v2.into()));
    assert!(matches!(Magnet::from_bare_hash("x"), Err(MagnetError::BadInfoHash(_))));
}

#[test]
fn what_is_written_is_what_other_clients_read() {
    let mut magnet = with("&tr=http://t.example/a?b=c%26d&x.pe=[::1]:5&so=1,3-4");
    magnet.name = Some("a b&c+é".into());
    assert_eq!(
        magnet.to_string(),
        format!(
            "magnet:?xt=urn:btih:{HEX}&dn=a%20b%26c%2B%C3%A9\
             &tr=http%3A%2F%2Ft.example%2Fa%3Fb%3Dc%26d&x.pe=[::1]:5&so=1,3-4"
        )
    );
}

prop_compose! {
    fn any_magnet()(
        hash: [u8; 20],
        v2 in prop::option::of(any::<[u8; 32]>()),
        name in prop::option::of(".{1,40}"),
        trackers in prop::collection::btree_set("[!-~é]{1,40}", 0..6),
        web_seeds in prop::collection::btree_set("[!-~]{1,40}", 0..4),
        peers in prop::collection::btree_set(any::<std::net::SocketAddr>(), 0..4),
        select in prop::collection::vec((0u32..99, 0u32..99), 0..5),
    ) -> Magnet {
        Magnet {
            info_hash: InfoHash::new(hash),
            info_hash_v2: v2.map(InfoHashV2::new),
            name,
            trackers: trackers.into_iter().collect(),
            web_seeds: web_seeds.into_iter().collect(),
            peers: peers.into_iter().filter(|p| p.port() != 0).map(|p| p.to_string()).collect(),
            select: select.into_iter().map(|(first, more)| first..=first + more).collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(magnet in any_magnet()) {
        prop_assert_eq!(Magnet::parse(&magnet.to_string()), Ok(magnet));
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        let _ = Magnet::parse(&text);
        let _ = Magnet::from_bare_hash(&text);
        let link = format!("magnet:?xt=urn:btih:{HEX}&{text}");
        if let Ok(magnet) = Magnet::parse(&link) {
            prop_assert_eq!(Magnet::parse(&magnet.to_string()), Ok(magnet));
        }
    }
}
