//! What can be named as the source of a torrent, and what is said about what cannot.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tracker_server;

use std::os::unix::fs::PermissionsExt;

use p2pfs::engine::source::{Source, SourceError, resolve};
use p2pfs::proto::bencode::DictWriter;
use tracker_server::{Behaviour, Server};

const HASH: &str = "0123456789abcdef0123456789abcdef01234567";

fn torrent() -> Vec<u8> {
    let info = DictWriter::new()
        .int(b"length", 1)
        .bytes(b"name", b"a")
        .int(b"piece length", 16_384)
        .bytes(b"pieces", &[7; 20])
        .finish();
    [&b"d4:info"[..], &info, b"e"].concat()
}

fn is_torrent(source: &Result<Source, SourceError>) -> bool {
    matches!(source, Ok(Source::Metainfo(m)) if m.info.name == b"a")
}

fn is_magnet(source: &Result<Source, SourceError>) -> bool {
    matches!(source, Ok(Source::Magnet(m)) if m.info_hash.to_string() == HASH)
}

async fn error(text: &str) -> String {
    let error = resolve(text).await.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

async fn error_of(behaviour: Behaviour) -> String {
    let server = Server::start(behaviour).await;
    error(&server.url("/a.torrent")).await
}

#[tokio::test]
async fn magnets_and_bare_hashes_are_known() {
    assert!(is_magnet(&resolve(&format!("magnet:?xt=urn:btih:{HASH}")).await));
    assert!(is_magnet(&resolve(&format!(" MAGNET:?xt=urn:btih:{HASH}\n")).await));
    assert!(is_magnet(&resolve(HASH).await));
    assert!(is_magnet(&resolve("AERUKZ4JVPG66AJDIVTYTK6N54ASGRLH").await));
}

#[tokio::test]
async fn a_torrent_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd ☃ name.torrent");
    std::fs::write(&path, torrent()).unwrap();
    assert!(is_torrent(&resolve(path.to_str().unwrap()).await));
}

#[tokio::test]
async fn a_torrent_is_downloaded() {
    let server = Server::start(Behaviour::body("200 OK", &torrent())).await;
    assert!(is_torrent(&resolve(&server.url("/a.torrent")).await));
}

#[tokio::test]
async fn a_redirect_to_a_magnet_is_followed() {
    let head = format!(
        "HTTP/1.1 302 Found\r\nLocation: magnet:?xt=urn:btih:{HASH}&dn=x\r\nContent-Length: 0\r\n\r\n"
    );
    let server = Server::start(Behaviour::Sends(head.into_bytes())).await;
    assert!(is_magnet(&resolve(&server.url("/a.torrent")).await));
}

#[tokio::test]
async fn downloads_fail_with_the_cause() {
    let missing = error_of(Behaviour::body("404 Not Found", b"")).await;
    assert!(missing.contains("HTTP status 404"), "{missing}");
    let page = error_of(Behaviour::body("200 OK", b"\n<!DOCTYPE html><p>Log in</p>")).await;
    assert!(page.contains("web page (HTML)"), "{page}");
    let looped = error_of(Behaviour::RedirectsToItself).await;
    assert!(looped.contains("too many redirects"), "{looped}");
    // It is followed to where TLS is spoken, which nobody does here.
    let head = b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let secure = error_of(Behaviour::Sends(head.to_vec())).await;
    assert!(secure.contains("Connection refused"), "{secure}");
    let huge = b"HTTP/1.1 200 OK\r\nContent-Length: 67108865\r\n\r\n".to_vec();
    assert!(error_of(Behaviour::Sends(huge)).await.contains("longer than 64 MiB"));
    assert!(error_of(Behaviour::Endless).await.contains("longer than 64 MiB"));
    assert!(error_of(Behaviour::body("200 OK", b"le")).await.contains("not a torrent file"));
    assert!(error("http://127.0.0.1:1/a.torrent").await.contains("Connection refused"));
    assert!(error("http://[/").await.contains("not a valid URL"));
}

#[tokio::test]
async fn files_fail_with_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    assert!(error(&path("none")).await.contains("no such file"));
    assert!(error(&path("")).await.contains("not a file"));
    assert!(error("").await.contains("no such file"));
    assert!(error(&"a".repeat(10_000)).await.contains("no such file"));
    assert!(error("nul\0byte").await.contains("no such file"));
    assert!(error("ftp://192.0.2.1/a.torrent").await.contains("only http and https"));

    std::fs::write(path("page"), b"<html></html>").unwrap();
    assert!(error(&path("page")).await.contains("web page (HTML)"));
    std::fs::write(path("empty"), b"").unwrap();
    assert!(error(&path("empty")).await.contains("not a torrent file"));
    std::fs::File::create(path("big")).unwrap().set_len(64 * 1024 * 1024 + 1).unwrap();
    assert!(error(&path("big")).await.contains("longer than 64 MiB"));
    let status = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(status.success());
    assert!(error(&path("pipe")).await.contains("not a file"));
}

#[tokio::test]
async fn an_unreadable_file_is_said_to_be_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.torrent");
    std::fs::write(&path, torrent()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let resolved = resolve(path.to_str().unwrap()).await;
    // Permissions do not stop root.
    match nix::unistd::geteuid().is_root() {
        true => assert!(is_torrent(&resolved)),
        false => assert!(matches!(resolved, Err(SourceError::Permission(_)))),
    }
}

#[tokio::test]
async fn v2_hashes_are_magnets_of_their_own() {
    let hash = "ab".repeat(32);
    for text in [hash.clone(), format!("1220{hash}")] {
        let Ok(Source::Magnet(magnet)) = resolve(&text).await else { panic!("{text}") };
        assert_eq!(magnet.info_hash_v2.unwrap().to_string(), hash);
    }
}
