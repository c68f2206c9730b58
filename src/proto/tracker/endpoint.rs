//! What the announce URLs of a torrent name.

use url::{Host, Url};

/// Where and how a tracker is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// By HTTP or HTTPS.
    Http(Url),
    /// By UDP (BEP 15).
    Udp {
        /// A name or the text of an address.
        host: String,
        /// The UDP port.
        port: u16,
        /// The URL's path and query, as BEP 41 has them sent; empty when it has none.
        url_data: Vec<u8>,
    },
}

/// Why a tracker cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Another protocol, WebTorrent's most often.
    #[error("skipped: {0} trackers are not supported")]
    Scheme(String),
    /// Not a URL with a host.
    #[error("skipped: not a tracker's URL")]
    Malformed,
}

/// The longest URL taken, in bytes.
const MAX_URL_LEN: usize = 4_096;

/// The port of a UDP URL that names none, as other clients have it.
const DEFAULT_UDP_PORT: u16 = 80;

/// Reads an announce URL, which comes out of a torrent and may be anything.
pub fn endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    if text.len() > MAX_URL_LEN {
        return Err(EndpointError::Malformed);
    }
    let url = Url::parse(text).map_err(|_| EndpointError::Malformed)?;
    match url.scheme() {
        "http" | "https" => Ok(Endpoint::Http(url)),
        "udp" => {
            let host = match url.host().ok_or(EndpointError::Malformed)? {
                Host::Domain(name) => name.to_string(),
                Host::Ipv4(ip) => ip.to_string(),
                Host::Ipv6(ip) => ip.to_string(),
            };
            let port = url.port().unwrap_or(DEFAULT_UDP_PORT);
            if host.is_empty() || port == 0 {
                return Err(EndpointError::Malformed);
            }
            let query = url.query().map(|q| format!("?{q}")).unwrap_or_default();
            let url_data = match format!("{}{query}", url.path()) {
                slash if slash == "/" => Vec::new(),
                data => data.into_bytes(),
            };
            Ok(Endpoint::Udp { host, port, url_data })
        }
        // A host name with a port and no scheme would be shown as one.
        scheme if url.has_host() => Err(EndpointError::Scheme(scheme.chars().take(20).collect())),
        _ => Err(EndpointError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn udp(host: &str, port: u16, data: &str) -> Result<Endpoint, EndpointError> {
        Ok(Endpoint::Udp { host: host.into(), port, url_data: data.into() })
    }

    #[test]
    fn udp_urls_give_host_port_and_url_data() {
        assert_eq!(endpoint("udp://t.example:6969"), udp("t.example", 6969, ""));
        assert_eq!(endpoint("UDP://t.example:6969/"), udp("t.example", 6969, ""));
        assert_eq!(
            endpoint("udp://127.0.0.1:1/announce?k=v"),
            udp("127.0.0.1", 1, "/announce?k=v")
        );
        assert_eq!(endpoint("udp://[::1]:2/announce"), udp("::1", 2, "/announce"));
        assert_eq!(endpoint("udp://t.example/announce"), udp("t.example", 80, "/announce"));
    }

    #[test]
    fn what_we_do_not_speak_is_named() {
        assert_eq!(endpoint("wss://t.example"), Err(EndpointError::Scheme("wss".into())));
        for bad in
            ["", "tracker", "t.example:80/announce", "udp://", "udp://:80", "udp://t:0", "http://"]
        {
            assert_eq!(endpoint(bad), Err(EndpointError::Malformed), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "(udp://|http://|)\\PC{0,40}") {
            if let Ok(Endpoint::Udp { host, port, .. }) = endpoint(&text) {
                prop_assert!(!host.is_empty() && port != 0);
            }
        }
    }
}
