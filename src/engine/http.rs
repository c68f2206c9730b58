//! The one HTTP client, for trackers and .torrent files. Servers are hostile: every answer is
//! bounded in size, redirects and time.

use std::error::Error;
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, ClientBuilder, Response, StatusCode, header};
use url::{Host, Url};

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;

/// How long a connection may take to come about, its TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer that came whole.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// Where a redirect that was not followed leads, because it is not HTTP.
    pub(super) location: Option<String>,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer. The texts are for users and name no URL: it may hold a passkey.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpError {
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("{0}")]
    Failed(String),
}

struct Shared {
    client: Client,
    has_roots: bool,
}

/// For what begins without TLS: reading the root certificates takes longer than many a tracker to answer.
static PLAIN: LazyLock<Result<Client, String>> = LazyLock::new(|| {
    builder(&["http"]).tls_certs_only([]).build().map_err(|error| describe(&error))
});

/// For what begins with TLS: the system's root certificates are read once.
static SHARED: LazyLock<Result<Shared, String>> = LazyLock::new(|| {
    // Without root certificates (package ca-certificates) no client with TLS can be made, and plain
    // HTTP has to work all the same.
    let bare = || builder(&["http", "https"]).tls_certs_only([]).build();
    let client =
        builder(&["http", "https"]).build().map(|client| Shared { client, has_roots: true });
    client
        .or_else(|_| bare().map(|client| Shared { client, has_roots: false }))
        .map_err(|error| describe(&error))
});

/// Follows redirects to these schemes. Connections are not kept for reuse; announces to one tracker lie
/// minutes apart.
fn builder(follows: &'static [&'static str]) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("p2pfs/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(0)
        .no_proxy() // a tracker would take the proxy's address for ours
        .redirect(Policy::custom(|attempt| redirect(attempt, follows)))
}

fn redirect(attempt: Attempt<'_>, follows: &[&str]) -> reqwest::redirect::Action {
    let to = attempt.url();
    if is_local(to) && !attempt.previous().iter().any(is_local) {
        return attempt.error("a redirect to this machine, not followed");
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if follows.contains(&to.scheme()) { attempt.follow() } else { attempt.stop() }
}

/// Whether a URL names this machine, whose services others must not reach through us.
pub(super) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_unspecified(),
        Some(Host::Ipv6(ip)) => {
            let ip = ip.to_canonical();
            ip.is_loopback() || ip.is_unspecified()
        }
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// Gets `url` within `timeout` (twice that, if it leads to one with TLS), with a body of at most `max_len`
/// bytes, whatever the status.
pub(super) async fn get(url: Url, max_len: usize, timeout: Duration) -> Result<Reply, HttpError> {
    let unmade = |cause: &String| HttpError::Failed(cause.clone());
    let mut url = url;
    if url.scheme() == "http" {
        let client = PLAIN.as_ref().map_err(unmade)?;
        let response = client.get(url).timeout(timeout).send().await.map_err(failed)?;
        match with_tls(&response) {
            Some(to) => url = to,
            None => return whole(response, max_len).await,
        }
    }
    let shared = SHARED.as_ref().map_err(unmade)?;
    let response = shared.client.get(url).timeout(timeout).send().await;
    let response = response.map_err(failed).map_err(|error| match error {
        HttpError::Failed(cause) if !shared.has_roots && cause.contains("certificate") => {
            let why = "this machine has no root certificates, install ca-certificates";
            HttpError::Failed(format!("{cause}; {why}"))
        }
        error => error,
    })?;
    whole(response, max_len).await
}

/// Where an answer leads, if TLS is spoken there. [`redirect`] has let it pass.
fn with_tls(response: &Response) -> Option<Url> {
    let to = response.headers().get(header::LOCATION)?.to_str().ok()?;
    let to = response.url().join(to).ok()?;
    let leads = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let here = is_local(&to) && !is_local(response.url());
    (leads && !here && to.scheme() == "https").then_some(to)
}

async fn whole(mut response: Response, max_len: usize) -> Result<Reply, HttpError> {
    if response.content_length().is_some_and(|n| n > max_len as u64) {
        return Err(HttpError::TooLong(max_len));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > max_len {
            return Err(HttpError::TooLong(max_len));
        }
        body.extend_from_slice(&chunk);
    }
    let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
    Ok(Reply { status: response.status(), location: location.map(str::to_owned), body })
}

fn failed(error: reqwest::Error) -> HttpError {
    HttpError::Failed(describe(&error))
}

/// The innermost cause, which is the one that says something.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<reqwest::Error>() {
        Some(_) => "the request could not be made".to_owned(),
        None => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        for local in ["127.0.0.1", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "localhost"] {
            assert!(is_local(&Url::parse(&format!("http://{local}/")).unwrap()), "{local}");
        }
        for other in ["192.0.2.1", "[2001:db8::1]", "localhost.example"] {
            assert!(!is_local(&Url::parse(&format!("http://{other}/")).unwrap()), "{other}");
        }
    }
}
