//! Lists of URLs from strangers.

use std::collections::BTreeSet;

/// The most URLs of one kind that one torrent or magnet link may bring.
pub(super) const MAX_URLS: usize = 200;

/// The longest URL, in bytes.
const MAX_URL_LEN: usize = 2048;

/// URLs in the order they came, each once, bounded in number and length. What they mean is for
/// those who use them to find out.
#[derive(Default)]
pub(super) struct UrlList {
    urls: Vec<String>,
    seen: BTreeSet<String>,
}

impl UrlList {
    /// Adds a URL unless it is empty, too long, one too many or there already.
    pub(super) fn push(&mut self, url: &str) {
        let url = url.trim();
        let fits = !url.is_empty() && url.len() <= MAX_URL_LEN && self.urls.len() < MAX_URLS;
        if fits && !url.chars().any(char::is_control) && self.seen.insert(url.to_owned()) {
            self.urls.push(url.to_owned());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.urls.len()
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.urls
    }
}
