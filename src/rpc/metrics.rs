//! Numbers about mounts and seeds in the text format of Prometheus.

use std::fmt::Write;

use super::{ShareKind, ShareStatus};

/// What is told of each: the name, its type, what it is, and the number.
type Metric = (&'static str, &'static str, &'static str, fn(&ShareStatus) -> f64);

const METRICS: [Metric; 13] = [
    ("p2pfs_bytes", "gauge", "Bytes of the torrent", |s| s.torrent.total as f64),
    ("p2pfs_verified_bytes", "gauge", "Bytes that are here", |s| s.torrent.verified as f64),
    ("p2pfs_wanted_bytes", "gauge", "Bytes of the selected files", |s| s.torrent.wanted as f64),
    ("p2pfs_wanted_verified_bytes", "gauge", "Bytes of the selected files that are here", |s| {
        s.torrent.wanted_verified as f64
    }),
    ("p2pfs_received_bytes_total", "counter", "Payload received", |s| s.torrent.downloaded as f64),
    ("p2pfs_sent_bytes_total", "counter", "Payload sent", |s| s.torrent.uploaded as f64),
    ("p2pfs_wasted_bytes_total", "counter", "Payload received and thrown away", |s| {
        s.torrent.wasted as f64
    }),
    ("p2pfs_peers", "gauge", "Connected peers", |s| s.torrent.peers as f64),
    ("p2pfs_seeders", "gauge", "Connected peers that have everything", |s| {
        s.torrent.seeders as f64
    }),
    ("p2pfs_known_peers", "gauge", "Known addresses", |s| s.torrent.known_peers as f64),
    ("p2pfs_banned_peers", "gauge", "Peers banned for bad data", |s| s.torrent.banned as f64),
    ("p2pfs_waiting_reads", "gauge", "Reads that wait", |s| s.torrent.waiting_reads as f64),
    ("p2pfs_problem", "gauge", "Whether something is wrong", |s| {
        f64::from(u8::from(s.torrent.error.is_some() || s.problem.is_some()))
    }),
];

/// The numbers of all mounts and seeds.
pub fn text(shares: &[ShareStatus]) -> String {
    let mut text = String::new();
    for (name, kind, help, number) in METRICS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        // A folder may have a detached mount and a new one, which have the same labels.
        for share in shares.iter().filter(|share| !share.detached) {
            let kind = match share.kind {
                ShareKind::Mount => "mount",
                ShareKind::Seed => "seed",
            };
            let _ = writeln!(
                text,
                "{name}{{path=\"{}\",kind=\"{kind}\",name=\"{}\",info_hash=\"{}\"}} {}",
                label(&share.path.to_string_lossy()),
                label(&share.torrent.name),
                share.torrent.info_hash,
                number(share)
            );
        }
    }
    text
}

/// A label's value, as it has to be written.
fn label(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(label("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
