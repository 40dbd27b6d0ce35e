//! Where a host is, and how a job names the hosts it is for.
//!
//! Invariant: a [`Locality`] and a [`Selector`] hold only checked names, so they print and parse back unchanged.

use crate::codec::DecodeError;
use crate::limits;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Labels of a host, e.g. `gpu=yes`. Keys `region`, `site`, `rack` and `host` are taken by the locality.
pub type Labels = BTreeMap<String, String>;

/// A host's place: `region/site/rack/host`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Locality {
    /// Region: what one set of seeders and trackers serves.
    #[n(0)]
    pub region: String,
    /// Site (IDC) within the region.
    #[n(1)]
    pub site: String,
    /// Rack within the site: hosts behind one uplink.
    #[n(2)]
    pub rack: String,
    /// Host within the rack.
    #[n(3)]
    pub host: String,
}

/// Whether `name` may stand in a locality or label: 1 to 63 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= limits::LABEL_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A locality or selector that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseLocalityError {
    /// Not four names joined by slashes.
    #[error("`{0}` is not region/site/rack/host (names of letters, digits, `.`, `_`, `-`)")]
    Locality(String),
    /// A selector term without `=`, or with a bad name.
    #[error("`{0}` is not a selector term: use all, region=R, site=S, rack=R, host=H or label=value")]
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

    /// `region/site/rack`: what shares an uplink.
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

/// One condition: a locality level or a label must have this value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Term {
    /// `region`, `site`, `rack`, `host` or a label's key.
    #[n(0)]
    pub key: String,
    /// The value it must have.
    #[n(1)]
    pub value: String,
}

/// Which hosts a job is for: any of the alternatives, each of which asks for all of its terms.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Selector {
    /// Alternatives; an empty one selects every host.
    #[n(0)]
    pub any: Vec<Vec<Term>>,
}

impl Selector {
    /// Every host.
    pub fn all() -> Self {
        Self { any: vec![Vec::new()] }
    }

    /// Whether it asks nothing of a host.
    pub fn is_everyone(&self) -> bool {
        self.any.iter().any(Vec::is_empty)
    }

    /// Reads one selector per flag; the flags are alternatives, commas within one mean "and". ` or ` within a flag does
    /// what two flags do, so that a printed selector reads back.
    pub fn parse<S: AsRef<str>>(flags: &[S]) -> Result<Self, ParseLocalityError> {
        let alternatives = flags.iter().flat_map(|flag| flag.as_ref().split(" or "));
        let any = alternatives.map(parse_terms).collect::<Result<Vec<_>, _>>()?;
        let selector = Self { any };
        if selector.is_valid() { Ok(selector) } else { Err(ParseLocalityError::Count) }
    }

    /// Whether it is within bounds, and names what can be.
    pub fn is_valid(&self) -> bool {
        (1..=limits::SELECTOR_TERMS_MAX).contains(&self.any.len())
            && self.any.iter().all(|terms| {
                terms.len() <= limits::SELECTOR_TERMS_MAX
                    && terms.iter().all(|term| is_name(&term.key) && is_name(&term.value))
            })
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

/// Checks labels that came from outside.
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
