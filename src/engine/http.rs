//! The one HTTP client, for trackers and .torrent files. Servers are hostile: every answer is
//! bounded in size, redirects and time.

use std::error::Error;
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, ClientBuilder, StatusCode, header};
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

/// One for the process: the system's root certificates are read once. Connections are not kept for
/// reuse; announces to one tracker lie minutes apart.
static SHARED: LazyLock<Result<Shared, String>> = LazyLock::new(|| {
    // Without root certificates (package ca-certificates) no client with TLS can be made, and plain
    // HTTP has to work all the same.
    let bare = || builder().tls_certs_only([]).build();
    let client = builder().build().map(|client| Shared { client, has_roots: true });
    client
        .or_else(|_| bare().map(|client| Shared { client, has_roots: false }))
        .map_err(|error| describe(&error))
});

fn builder() -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("p2pfs/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(0)
        .no_proxy() // a tracker would take the proxy's address for ours
        .redirect(Policy::custom(redirect))
}

fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let to = attempt.url();
    if !matches!(to.scheme(), "http" | "https") {
        return attempt.stop();
    }
    if is_local(to) && !attempt.previous().iter().any(is_local) {
        return attempt.error("a redirect to this machine, not followed");
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    attempt.follow()
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

/// Gets `url` within `timeout` in all, with a body of at most `max_len` bytes, whatever the status.
pub(super) async fn get(url: Url, max_len: usize, timeout: Duration) -> Result<Reply, HttpError> {
    let shared = SHARED.as_ref().map_err(|cause| HttpError::Failed(cause.clone()))?;
    let https = url.scheme() == "https";
    let failed = |error: reqwest::Error| {
        let mut cause = describe(&error);
        if https && !shared.has_roots && cause.contains("certificate") {
            cause.push_str("; this machine has no root certificates, install ca-certificates");
        }
        HttpError::Failed(cause)
    };
    let mut response = shared.client.get(url).timeout(timeout).send().await.map_err(failed)?;
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
