//! Authentication at a registry: credentials, challenges and tokens.
//!
//! Invariant: no error and no debug output contains a credential.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shoal_proto::go_json::GoValue;
use std::collections::BTreeMap;

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User and password.
    Password(String, String),
    /// A refresh token, which the token server exchanges for a token.
    Refresh(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// Returns the header of basic authentication.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// How a registry asks for authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Returns the challenge of `WWW-Authenticate` headers. A token is preferred to a password.
pub fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut best = None;
    for Offer { scheme, mut params } in headers.flat_map(offers) {
        match (scheme.as_str(), params.remove("realm")) {
            ("bearer", Some(realm)) => {
                let (service, scope) = (params.remove("service"), params.remove("scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
            ("basic", _) => best = Some(Challenge::Basic),
            _ => {}
        }
    }
    best
}

/// One way to authenticate that a registry offers.
struct Offer {
    /// In lower case.
    scheme: String,
    params: BTreeMap<String, String>,
}

/// Splits a header into its offers. Commas separate both offers and parameters (RFC 9110, section 11.6.1).
fn offers(header: &str) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some(first) = rest.chars().next() else { return offers };
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=').filter(|_| !word.is_empty()) {
            Some(value) => {
                let ParamValue { text, rest: next } = param_value(value);
                if let Some(offer) = offers.last_mut() {
                    offer.params.insert(word.to_ascii_lowercase(), text);
                }
                rest = next;
            }
            None if word.is_empty() => rest = &rest[first.len_utf8()..],
            None => {
                offers.push(Offer { scheme: word.to_ascii_lowercase(), params: BTreeMap::new() });
                rest = after;
            }
        }
    }
}

/// The value of a parameter, and what follows it.
struct ParamValue<'a> {
    text: String,
    rest: &'a str,
}

/// Reads a value in quotes, in which a backslash escapes a character, or a value up to the next comma.
fn param_value(text: &str) -> ParamValue<'_> {
    let text = text.trim_start_matches([' ', '\t']);
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find(',').unwrap_or(text.len()));
        return ParamValue { text: value.trim().to_string(), rest };
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return ParamValue { text: value, rest: &quoted[at + 1..] },
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    ParamValue { text: value, rest: "" }
}

/// Returns the token in a token server's answer. Servers use either name.
pub fn token(answer: &[u8]) -> Option<String> {
    let answer: GoValue = serde_json::from_slice(answer).ok()?;
    let named = |name| answer.text(name).ok().filter(|token| !token.is_empty());
    named("token").or_else(|| named("access_token")).map(str::to_string)
}

/// Percent-encodes a value for a query or a form.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(str::to_string),
                scope: scope.map(str::to_string),
            })
        };
        let table = [
            (
                r#"Bearer realm="https://a.example/token",service="r.example",scope="repository:lab/app:pull,push""#,
                bearer("https://a.example/token", Some("r.example"), Some("repository:lab/app:pull,push")),
            ),
            (r#"bearer realm="https://a/\"x", service=r"#, bearer("https://a/\"x", Some("r"), None)),
            ("Bearer service=\"x\"", None),
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("Digest realm=\"x\"", None),
            ("", None),
            ("Bearer realm=\"", bearer("", None, None)),
            ("Bearer realm=\"\\", bearer("", None, None)),
        ];
        for (header, expected) in table {
            assert_eq!(challenge([header].into_iter()), expected, "{header}");
        }
        assert!(matches!(challenge(["Basic", "Bearer realm=x"].into_iter()), Some(Challenge::Bearer { .. })));
    }

    #[test]
    fn several_offers_in_one_header_are_told_apart() {
        let bearer = |header: &str| match challenge([header].into_iter()) {
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service.unwrap_or_default(), scope),
            other => panic!("{header}: {other:?}"),
        };
        let expected = ("https://a/t".to_string(), "s".to_string(), None);
        for header in [
            r#"Basic realm="x", Bearer realm="https://a/t",service="s""#,
            r#"Bearer realm="https://a/t", service="s", Basic realm="x""#,
            r#"Negotiate abc==, Bearer realm = "https://a/t" , service = s"#,
            r#", ,Basic,Bearer realm="https://a/t",service="s",error="x, Basic y""#,
        ] {
            assert_eq!(bearer(header), expected, "{header}");
        }
        assert_eq!(challenge(["Negotiate, Basic realm=\"x\""].into_iter()), Some(Challenge::Basic));
        for odd in ["=", "==,=", "\"", "\"\"=", "Bearer =x", "é=é, é", "realm=\"x\""] {
            assert_eq!(challenge([odd].into_iter()), None, "{odd}");
        }
    }

    #[test]
    fn tokens_have_two_names() {
        assert_eq!(token(br#"{"token":"a"}"#).as_deref(), Some("a"));
        assert_eq!(token(br#"{"token":null,"access_token":"b","expires_in":"300"}"#).as_deref(), Some("b"));
        for none in [&b"{}"[..], br#"{"token":""}"#, br#"{"token":7}"#, b"[]", b"x"] {
            assert_eq!(token(none), None);
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(header in ".{0,80}") {
            let _ = challenge([header.as_str()].into_iter());
        }
    }

    #[test]
    fn values_are_escaped() {
        assert_eq!(escape("repository:a/b:pull&x"), "repository%3Aa%2Fb%3Apull%26x");
    }
}
