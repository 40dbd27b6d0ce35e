//! URLs of registries.
//!
//! Invariant: a URL has no user and no password, so a URL in a log shows no credential.

use std::fmt;

/// An `http` or `https` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpUrl {
    pub(crate) https: bool,
    /// Host and port, as written.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl HttpUrl {
    /// Parses a URL. Returns `None` for other schemes and for a URL with a user.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: hyper::Uri = text.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_string();
        (!authority.contains('@')).then(|| Self { https, authority: authority.to_string(), path })
    }

    /// Returns the URL to which a `Location` header leads: another path of this authority, or a whole URL.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            location.parse::<hyper::Uri>().ok()?;
            return Some(Self { path: location.to_string(), ..self.clone() });
        }
        Self::parse(location)
    }

    /// Returns the host without brackets and port.
    pub(crate) fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        let port = self.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.unwrap_or(if self.https { 443 } else { 80 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_joined() {
        let url = HttpUrl::parse("https://r.example:5000/v2/?a=b").unwrap();
        assert_eq!((url.host(), url.port(), &*url.path), ("r.example", 5000, "/v2/?a=b"));
        assert_eq!(HttpUrl::parse("http://r.example").unwrap().port(), 80);
        assert_eq!(HttpUrl::parse("https://[::1]:5000/").unwrap().host(), "::1");
        assert_eq!(url.join("/other").unwrap().to_string(), "https://r.example:5000/other");
        assert_eq!(url.join("http://cdn.example/x?y").unwrap().to_string(), "http://cdn.example/x?y");
        for bad in ["ftp://x/", "r.example/v2", "https://user:pw@r.example/", "//x/y", "", "https://r example/"] {
            assert!(url.join(bad).is_none(), "{bad}");
        }
    }
}
