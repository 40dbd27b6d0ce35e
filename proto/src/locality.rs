//! Localities of hosts, and the selectors with which a job chooses hosts.
//!
//! Invariant: a [`Locality`] and a [`Selector`] hold only checked names, so their text parses back unchanged.

use crate::codec::DecodeError;
use crate::limits;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Labels of a host, for example `gpu=yes`. The keys `region`, `site`, `rack` and `host` are reserved for the locality.
pub type Labels = BTreeMap<String, String>;

/// A host's place: `region/site/rack/host`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Locality {
    /// The region: the hosts of one set of seeders and trackers.
    #[n(0)]
    pub region: String,
    /// The site (IDC) within the region.
    #[n(1)]
    pub site: String,
    /// The rack within the site: the hosts behind one uplink.
    #[n(2)]
    pub rack: String,
    /// The host within the rack.
    #[n(3)]
    pub host: String,
}

/// Whether `name` is valid in a locality or label: 1 to 63 of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= limits::LABEL_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A text that is not a locality or a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseLocalityError {
    /// Not four names joined by slashes.
    #[error("invalid locality `{0}`: use region/site/rack/host with letters, digits, `.`, `_`, `-`")]
    Locality(String),
    /// A selector term without `=`, or with a bad name.
    #[error("invalid selector term `{0}`: use all, region=R, site=S, rack=R, host=H or label=value")]
    Term(String),
    /// No terms, or too many.
    #[error("a selector takes 1 to {} terms", limits::SELECTOR_TERMS_MAX)]
    Count,
}

impl Locality {
    /// Checks the four names.
    pub fn new(region: &str, site: &str, rack: &str, host: &str) -> Result<Self, ParseLocalityError> {
        let made = Self { region: region.into(), site: site.into(), rack: rack.into(), host: host.into() };
        if made.is_valid() { Ok(made) } else { Err(ParseLocalityError::Locality(made.to_string())) }
    }

    pub(crate) fn is_valid(&self) -> bool {
        [&self.region, &self.site, &self.rack, &self.host].into_iter().all(|name| is_name(name))
    }

    /// Returns `region/site/rack`. Hosts with the same value share an uplink.
    pub fn rack_path(&self) -> String {
        format!("{}/{}/{}", self.region, self.site, self.rack)
    }

    /// Whether both are behind the same uplink.
    pub fn same_rack(&self, other: &Self) -> bool {
        self.rack == other.rack && self.same_site(other)
    }

    /// Whether both are in the same site.
    pub fn same_site(&self, other: &Self) -> bool {
        self.site == other.site && self.region == other.region
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.region, self.site, self.rack, self.host)
    }
}

impl FromStr for Locality {
    type Err = ParseLocalityError;
    fn from_str(text: &str) -> Result<Self, ParseLocalityError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(region), Some(site), Some(rack), Some(host), None) => Self::new(region, site, rack, host),
            _ => Err(ParseLocalityError::Locality(text.into())),
        }
    }
}

impl Serialize for Locality {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Locality {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One condition: a level of the locality or a label has this value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Term {
    /// `region`, `site`, `rack`, `host` or the key of a label.
    #[n(0)]
    pub key: String,
    /// The value it must have.
    #[n(1)]
    pub value: String,
}

/// Chooses hosts: a host matches if all terms of at least one alternative hold.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Selector {
    /// The alternatives. An empty alternative selects every host.
    #[n(0)]
    pub any: Vec<Vec<Term>>,
}

impl Selector {
    /// Returns the selector of every host.
    pub fn all() -> Self {
        Self { any: vec![Vec::new()] }
    }

    /// Whether the selector matches every host.
    pub fn is_everyone(&self) -> bool {
        self.any.iter().any(Vec::is_empty)
    }

    /// Parses one selector per flag. Flags are alternatives, and commas within a flag mean "and". ` or ` within a flag
    /// separates alternatives too, so that the text of a selector parses back.
    ///
    /// # Errors
    ///
    /// A term without `=`, an invalid name, or a number of terms out of bounds.
    pub fn parse<S: AsRef<str>>(flags: &[S]) -> Result<Self, ParseLocalityError> {
        let alternatives = flags.iter().flat_map(|flag| flag.as_ref().split(" or "));
        let any = alternatives.map(parse_terms).collect::<Result<Vec<_>, _>>()?;
        let selector = Self { any };
        if selector.is_valid() { Ok(selector) } else { Err(ParseLocalityError::Count) }
    }

    /// Whether the selector is within bounds and all names are valid.
    pub fn is_valid(&self) -> bool {
        (1..=limits::SELECTOR_TERMS_MAX).contains(&self.any.len())
            && self.any.iter().all(|terms| {
                terms.len() <= limits::SELECTOR_TERMS_MAX
                    && terms.iter().all(|term| is_name(&term.key) && is_name(&term.value))
            })
    }

    /// Whether this selector surely matches every host that `other` matches: each alternative of `other` has all terms
    /// of one alternative of this selector.
    pub fn includes(&self, other: &Self) -> bool {
        other.any.iter().all(|narrow| self.any.iter().any(|wide| wide.iter().all(|term| narrow.contains(term))))
    }

    /// Whether a host is selected.
    pub fn matches(&self, locality: &Locality, labels: &Labels) -> bool {
        self.any.iter().any(|terms| terms.iter().all(|term| term.matches(locality, labels)))
    }
}

impl Term {
    fn matches(&self, locality: &Locality, labels: &Labels) -> bool {
        let actual = match self.key.as_str() {
            "region" => Some(&locality.region),
            "site" => Some(&locality.site),
            "rack" => Some(&locality.rack),
            "host" => Some(&locality.host),
            label => labels.get(label),
        };
        actual == Some(&self.value)
    }
}

fn parse_terms(text: &str) -> Result<Vec<Term>, ParseLocalityError> {
    if text == "all" {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|term| match term.split_once('=') {
            Some((key, value)) if is_name(key) && is_name(value) => Ok(Term { key: key.into(), value: value.into() }),
            _ => Err(ParseLocalityError::Term(term.into())),
        })
        .collect()
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, terms) in self.any.iter().enumerate() {
            if index > 0 {
                f.write_str(" or ")?;
            }
            if terms.is_empty() {
                f.write_str("all")?;
            }
            for (place, term) in terms.iter().enumerate() {
                let comma = if place > 0 { "," } else { "" };
                write!(f, "{comma}{}={}", term.key, term.value)?;
            }
        }
        Ok(())
    }
}

/// Checks labels from outside.
///
/// # Errors
///
/// [`DecodeError::Invalid`] for too many labels, an invalid name, or a reserved key.
pub fn validate_labels(labels: &Labels) -> Result<(), DecodeError> {
    let taken = ["region", "site", "rack", "host"];
    if labels.len() > limits::LABELS_MAX {
        return Err(DecodeError::invalid("labels", format!("more than {}", limits::LABELS_MAX)));
    }
    match labels.iter().find(|(key, value)| !is_name(key) || !is_name(value) || taken.contains(&key.as_str())) {
        Some((key, value)) => Err(DecodeError::invalid("labels", format!("`{key}={value}`"))),
        None => Ok(()),
    }
}
