//! The check of the `Host` header: a page of another site that resolves its own name to this server (DNS rebinding)
//! gets no answer that a browser would hand to that page.
//!
//! Invariant: a request that names a host is answered only if the name is an address, this machine's, or configured.

#![allow(unreachable_pub, reason = "the server is the only user of this module")]

use super::api_error::ApiError;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The names under which a server answers, beside its addresses.
#[derive(Clone, Debug)]
pub struct HostNames(Arc<[String]>);

impl HostNames {
    /// Returns the configured names, `localhost` and the name of this machine.
    pub fn new(configured: &[String]) -> Self {
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let own = ["localhost".to_string(), machine];
        Self(configured.iter().cloned().chain(own).map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Returns whether `host`, as in a `Host` header, names this server.
    pub fn contain(&self, host: &str) -> bool {
        if let Some((inside, after)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return inside.parse::<Ipv6Addr>().is_ok() && (after.is_empty() || is_port(after));
        }
        let name = match host.find(':') {
            Some(colon) if is_port(&host[colon..]) => &host[..colon],
            Some(_) => return false,
            None => host,
        };
        // A browser resolves no address, so no site can stand behind one.
        name.parse::<IpAddr>().is_ok() || {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            self.0.contains(&name)
        }
    }
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

/// Middleware that refuses requests for other hosts, and forbids browsers to guess the type of an answer.
pub async fn check_host(State(names): State<HostNames>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let admitted = host.is_none_or(|host| host.to_str().is_ok_and(|host| names.contain(host)));
    let mut answer = if admitted {
        next.run(request).await
    } else {
        ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "request refused",
            "its Host header names another server",
            "use this server's address, or add the name to http_access.names in its configuration",
        )
        .into_response()
    };
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_configured_names_pass() {
        let names = HostNames::new(&["Hub.example".into()]);
        for host in [
            "127.0.0.1",
            "192.0.2.1:7740",
            "[::1]",
            "[2001:db8::1]:7740",
            "localhost:1",
            "hub.example",
            "HUB.example.:80",
        ] {
            assert!(names.contain(host), "{host}");
        }
        let bad = [
            "evil.example",
            "evil.example:7740",
            "hub.example.evil.example",
            "",
            ":80",
            "[::1",
            "[x]",
            "[::1]x",
            "a:b:c",
            "127.0.0.1.evil.example",
            "hub.example:99999",
            "127.0.0.1@evil.example",
        ];
        for host in bad {
            assert!(!names.contain(host), "{host}");
        }
    }
}
