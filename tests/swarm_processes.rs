//! A seed and some leechers, each a process behind a capped uplink: what they trade among
//! themselves the seed does not have to send.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

/// Bytes a second that everybody may send.
const UPLINK: &str = "1000000";

/// A file that takes the seed some seconds to send once.
fn film() -> Content {
    Content::single("film.bin", 6 * MIB)
}

/// How many copies of the torrent a seed has sent.
fn copies_sent(seed: &P2pfs, torrent: &Torrent) -> f64 {
    let status = seed.status();
    status[0].number("uploaded") as f64 / torrent.length as f64
}

#[test]
fn five_leechers_trade_what_the_seed_sends_about_once() {
    let scratch = Scratch::new();
    let content = film();
    let torrent = Torrent::new(&scratch, &content);
    let seed = P2pfs::named(&scratch, "seed");
    seed.seed(&torrent, &["--upload-limit", UPLINK]);
    let daemons: Vec<_> = (0..5).map(|n| P2pfs::named(&scratch, &format!("leecher{n}"))).collect();
    let mut known = vec![seed.address.to_string()];
    let mut mounts = Vec::new();
    for daemon in &daemons {
        let peers = known.iter().flat_map(|address| ["--peer", address.as_str()]);
        let options: Vec<_> = ["--upload-limit", UPLINK].into_iter().chain(peers).collect();
        mounts.push(daemon.mount(&torrent.file, &options));
        known.push(daemon.address.to_string());
    }
    for mount in &mounts {
        mount.wait();
        assert_eq!(mount.tree(), content.tree());
        assert_eq!(mount.status().number("banned"), 0);
    }
    // Five if they did not trade.
    let copies = copies_sent(&seed, &torrent);
    println!("the seed sent {copies} copies");
    assert!((1.0..2.5).contains(&copies), "the seed sent {copies} copies");
}

#[test]
fn p2pfs_and_libtorrent_trade_with_each_other() {
    let scratch = Scratch::new();
    let content = film();
    let torrent = Torrent::new(&scratch, &content);
    let seed = P2pfs::named(&scratch, "seed");
    seed.seed(&torrent, &["--upload-limit", UPLINK]);
    let source = torrent.file.to_str().unwrap();
    let limit = ["--plaintext", "--upload-limit", UPLINK];
    let mut others: Vec<_> = (0..2)
        .map(|n| Libtorrent::start(&scratch, source, &scratch.dir(&format!("save{n}")), &limit))
        .collect();
    let addresses: Vec<_> = others.iter().map(|other| other.address.to_string()).collect();
    let daemons = [P2pfs::named(&scratch, "one"), P2pfs::named(&scratch, "two")];
    let seeder = seed.address.to_string();
    let mounts = daemons.each_ref().map(|daemon| {
        let peers = addresses.iter().chain([&seeder]).flat_map(|address| ["--peer", address]);
        let options: Vec<_> = ["--upload-limit", UPLINK].into_iter().chain(peers).collect();
        daemon.mount(&torrent.file, &options)
    });
    for other in &mut others {
        other.connect(seed.address);
        other.connect(daemons[0].address);
    }
    for (n, other) in others.iter().enumerate() {
        other.wait_until_complete();
        assert_eq!(Tree::read(&scratch.path(&format!("save{n}"))), content.tree());
        assert_eq!(other.wasted(), 0, "bytes that failed libtorrent's check");
    }
    for mount in &mounts {
        mount.wait();
        assert_eq!(mount.tree(), content.tree());
        assert_eq!(mount.status().number("banned"), 0);
    }
    // Four if they did not trade.
    let copies = copies_sent(&seed, &torrent);
    println!("the seed sent {copies} copies");
    assert!((1.0..3.0).contains(&copies), "the seed sent {copies} copies");
}
