//! Join tokens: the permission to join that an operator hands to hosts, before they have keys.
//!
//! A token is a signed document about a public key, and the secret half of that key. A host shows the document, and
//! signs its own node key with the secret. Invariant: the secret stays with whoever has the token's text, so a tracker
//! that sees a token cannot use it.

use super::credential::{AddressRange, Credential, Role};
use super::envelope::{Envelope, Keypair};
use super::error::TrustError;
use crate::codec::{DecodeError, DocKind, Document};
use crate::hex;
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::locality::{Labels, Locality, is_name};
use minicbor::{Decode, Encode};
use std::fmt;
use std::str::FromStr;

/// The document of a token. The root or an issuer signs it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JoinToken {
    /// The cluster. A host believes only a tracker of this cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// The public half of the token's secret. It identifies the token.
    #[n(1)]
    pub key: NodeId,
    /// The role of the hosts.
    #[n(2)]
    pub role: Role,
    /// `region/site/rack` for any host of the rack, or `region/site/rack/host` for one host.
    #[n(3)]
    pub place: String,
    /// How many hosts may join.
    #[n(4)]
    pub uses: u32,
    /// End of the token, Unix seconds.
    #[n(5)]
    pub not_after: u64,
    /// Validity of the hosts' credentials, seconds.
    #[n(6)]
    pub valid_s: u64,
    /// See [`Credential::labels`].
    #[n(7)]
    pub labels: Labels,
    /// See [`Credential::weight_max`].
    #[n(8)]
    pub weight_max: u16,
    /// See [`Credential::addresses`].
    #[n(9)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ADDRESS_RANGES_MAX }, _, _>")]
    pub addresses: Vec<AddressRange>,
    /// The version of the trust document when the token was made. A host believes no older document.
    #[n(10)]
    pub trust_version: u64,
}

/// A host's request to use a token. The secret of the token signs it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JoinClaim {
    /// The cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// The key of the host.
    #[n(1)]
    pub node: NodeId,
    /// The name of the host within its rack. `None` lets the tracker choose.
    #[n(2)]
    pub name: Option<String>,
}

/// Why a token does not fit a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token has ended.
    #[error("the token ended {} s ago: create another one with `shoal cluster token create`", .now.saturating_sub(*.not_after))]
    Expired {
        /// The end of the token, Unix seconds.
        not_after: u64,
        /// The time of the check, Unix seconds.
        now: u64,
    },
    /// All uses are taken.
    #[error(
        "the token has been used by {0} hosts, which is its limit: create another one with `shoal cluster token create`"
    )]
    UsedUp(u32),
    /// The claim is not signed with the token's secret, or is another host's.
    #[error("the request is not signed with the token's secret for this host's key")]
    NotClaimed,
    /// The token is for one host with another name.
    #[error("the token is for {place}, not for a host named `{name}`")]
    OtherName {
        /// The place of the token.
        place: String,
        /// The name that the host asked for.
        name: String,
    },
}

impl JoinToken {
    /// Returns the locality of a host with this name and key. Without a name, the key names the host.
    ///
    /// # Errors
    ///
    /// [`TokenError::OtherName`] if the token is for another host.
    pub fn locality_of(&self, name: Option<&str>, node: &NodeId) -> Result<Locality, TokenError> {
        let other = |name: &str| TokenError::OtherName { place: self.place.clone(), name: name.into() };
        if let Ok(whole) = self.place.parse::<Locality>() {
            return match name {
                Some(name) if name != whole.host => Err(other(name)),
                _ => Ok(whole),
            };
        }
        let own = format!("host-{}", node.short());
        let name = name.unwrap_or(&own);
        format!("{}/{name}", self.place).parse().map_err(|_| other(name))
    }

    /// Returns the credential of a host at this locality.
    pub fn credential(&self, node: NodeId, locality: Locality, now: u64) -> Credential {
        Credential {
            cluster: self.cluster,
            node,
            role: self.role,
            locality,
            not_before: now.saturating_sub(limits::CLOCK_SKEW_MAX_S),
            not_after: now.saturating_add(self.valid_s),
            labels: self.labels.clone(),
            weight_max: self.weight_max,
            addresses: self.addresses.clone(),
        }
    }

    /// Opens a host's request to use this token.
    ///
    /// # Errors
    ///
    /// [`TokenError::NotClaimed`] if another key signed, or the request is for another host or cluster.
    pub fn open_claim(&self, claim: &[u8], node: NodeId) -> Result<JoinClaim, TokenError> {
        let envelope = Envelope::from_bytes(claim).map_err(|_| TokenError::NotClaimed)?;
        if envelope.signer() != self.key {
            return Err(TokenError::NotClaimed);
        }
        let claim: JoinClaim = envelope.open().map_err(|_| TokenError::NotClaimed)?;
        if claim.node != node || claim.cluster != self.cluster {
            return Err(TokenError::NotClaimed);
        }
        Ok(claim)
    }
}

impl Document for JoinToken {
    const KIND: DocKind = DocKind::JoinToken;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::JOIN_TOKEN_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        let names = self.place.split('/').count();
        if !(3..=4).contains(&names) || !self.place.split('/').all(is_name) {
            return Err(DecodeError::invalid("place of a token", format!("`{}`", self.place)));
        }
        if self.uses == 0 || self.uses > limits::JOIN_TOKEN_USES_MAX {
            return Err(DecodeError::invalid("uses of a token", self.uses.to_string()));
        }
        if self.valid_s == 0 {
            return Err(DecodeError::invalid("validity of a token's credentials", "0 s"));
        }
        let sample = self.place.parse::<Locality>().or_else(|_| format!("{}/host", self.place).parse());
        let locality = sample.map_err(|_| DecodeError::invalid("place of a token", format!("`{}`", self.place)))?;
        self.credential(self.key, locality, 1).validate()
    }
}

impl Document for JoinClaim {
    const KIND: DocKind = DocKind::JoinClaim;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::JOIN_CLAIM_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        match &self.name {
            Some(name) if !is_name(name) => Err(DecodeError::invalid("name of a host", format!("`{name}`"))),
            _ => Ok(()),
        }
    }
}

/// The text of a token: the signed document with its secret.
#[derive(Clone)]
pub struct TokenSecret {
    keys: Keypair,
    envelope: Envelope,
}

/// Begins the text of every token.
const TEXT_HEAD: &str = "shoal-join-1-";

impl TokenSecret {
    /// Signs a token with the key of the root or an issuer. `secret` is the random secret of the token.
    pub fn seal(token: &JoinToken, secret: Keypair, signer: &Keypair) -> Self {
        let envelope = Envelope::seal(&JoinToken { key: secret.node(), ..token.clone() }, signer);
        Self { keys: secret, envelope }
    }

    /// Returns the signed document.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Returns the document. Its signature matches the signer that the envelope names. Whether that signer is one of
    /// the cluster, the host learns from the cluster's trust document.
    ///
    /// # Errors
    ///
    /// As [`Envelope::open`].
    pub fn document(&self) -> Result<JoinToken, TrustError> {
        self.envelope.open()
    }

    /// Returns the signed request of a host to use the token.
    pub fn claim(&self, claim: &JoinClaim) -> Vec<u8> {
        Envelope::seal(claim, &self.keys).to_bytes()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSecret({})", self.keys.node().short())
    }
}

impl fmt::Display for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TEXT_HEAD)?;
        f.write_str(&hex::encode(&self.keys.seed()))?;
        f.write_str(&hex::encode(&self.envelope.to_bytes()))
    }
}

/// A text that is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: `shoal cluster token create` prints tokens, which begin with `{TEXT_HEAD}`")]
pub struct ParseTokenError;

impl FromStr for TokenSecret {
    type Err = ParseTokenError;
    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let digits = text.trim().strip_prefix(TEXT_HEAD).ok_or(ParseTokenError)?;
        let bytes = hex::decode(digits, 32 + limits::JOIN_TOKEN_BYTES_MAX).ok_or(ParseTokenError)?;
        let (seed, envelope) = bytes.split_first_chunk::<32>().ok_or(ParseTokenError)?;
        let token = Self {
            keys: Keypair::from_seed(*seed),
            envelope: Envelope::from_bytes(envelope).map_err(|_| ParseTokenError)?,
        };
        match token.document() {
            Ok(document) if document.key == token.keys.node() => Ok(token),
            _ => Err(ParseTokenError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(place: &str) -> JoinToken {
        JoinToken {
            cluster: ClusterId([1; 32]),
            key: NodeId([0; 32]),
            role: Role::Peer,
            place: place.into(),
            uses: 40,
            not_after: 1000,
            valid_s: 3600,
            labels: [("service".to_string(), "cache".to_string())].into(),
            weight_max: 100,
            addresses: vec!["10.0.0.0/8".parse().unwrap()],
            trust_version: 3,
        }
    }

    fn sealed(place: &str) -> TokenSecret {
        TokenSecret::seal(&token(place), Keypair::from_seed([5; 32]), &Keypair::from_seed([6; 32]))
    }

    #[test]
    fn a_text_parses_back_and_no_changed_text_does() {
        let sealed = sealed("r/s/k");
        let text = sealed.to_string();
        let again: TokenSecret = format!(" {text}\n").parse().unwrap();
        assert_eq!(again.to_string(), text);
        assert_eq!(again.document().unwrap(), sealed.document().unwrap());
        assert!(!format!("{sealed:?}").contains(&text[20..40]), "the secret is in no log");
        for at in (TEXT_HEAD.len()..text.len()).step_by(7) {
            let mut other = text.clone();
            let digit = if &text[at..=at] == "0" { "1" } else { "0" };
            other.replace_range(at..=at, digit);
            assert!(other.parse::<TokenSecret>().is_err(), "changed at {at}");
        }
        for bad in ["", "x", TEXT_HEAD, &text[..text.len() - 1], &text[..text.len() - 2], &format!("{text}00")] {
            assert!(bad.parse::<TokenSecret>().is_err(), "{bad:.20}");
        }
    }

    #[test]
    fn a_token_names_hosts_of_its_rack_only() {
        let node = NodeId([7; 32]);
        let rack = token("r/s/k");
        assert_eq!(rack.locality_of(Some("h1"), &node).unwrap().to_string(), "r/s/k/h1");
        assert_eq!(rack.locality_of(None, &node).unwrap().to_string(), "r/s/k/host-0707070707");
        assert!(rack.locality_of(Some("../x"), &node).is_err());
        assert!(rack.locality_of(Some("a/b"), &node).is_err());
        let one = token("r/s/k/h1");
        assert_eq!(one.locality_of(None, &node).unwrap().to_string(), "r/s/k/h1");
        assert_eq!(one.locality_of(Some("h1"), &node).unwrap().to_string(), "r/s/k/h1");
        assert!(one.locality_of(Some("h2"), &node).is_err());
    }

    #[test]
    fn a_claim_counts_for_the_host_that_made_it() {
        let sealed = sealed("r/s/k");
        let document = sealed.document().unwrap();
        let claim = JoinClaim { cluster: document.cluster, node: NodeId([7; 32]), name: Some("h1".into()) };
        assert_eq!(document.open_claim(&sealed.claim(&claim), claim.node).unwrap(), claim);
        assert!(document.open_claim(&sealed.claim(&claim), NodeId([8; 32])).is_err());
        let elsewhere = JoinClaim { cluster: ClusterId([9; 32]), ..claim.clone() };
        assert!(document.open_claim(&sealed.claim(&elsewhere), claim.node).is_err());
        let stranger = Envelope::seal(&claim, &Keypair::from_seed([9; 32])).to_bytes();
        assert!(document.open_claim(&stranger, claim.node).is_err());
        assert!(document.open_claim(b"", claim.node).is_err());
    }

    #[test]
    fn invalid_tokens_are_refused() {
        let refused = |token: JoinToken| assert!(JoinToken::from_bytes(&token.to_bytes()).is_err(), "{token:?}");
        assert!(JoinToken::from_bytes(&token("r/s/k").to_bytes()).is_ok());
        for place in ["", "r", "r/s", "r/s/k/h/x", "r/s/k/", "r//k", "r/../k"] {
            refused(token(place));
        }
        refused(JoinToken { uses: 0, ..token("r/s/k") });
        refused(JoinToken { uses: limits::JOIN_TOKEN_USES_MAX + 1, ..token("r/s/k") });
        refused(JoinToken { valid_s: 0, ..token("r/s/k") });
        refused(JoinToken { labels: [("rack".to_string(), "x".to_string())].into(), ..token("r/s/k") });
    }
}
