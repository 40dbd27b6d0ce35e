//! Desired state: the version of a name that each host must have, and the hosts that may switch now. It is one small
//! signed document per name. The newest counts, and every host evaluates it for itself.
//!
//! Invariant: what a document asks of a host depends only on the document and on the membership row of that host. Hosts
//! that join or leave change nothing for the others.

use crate::announcement::{is_content_name, is_version};
use crate::bitmap::Bitmap;
use crate::codec::{DecodeError, DocKind, Document};
use crate::feed::{DESIRED_FEEDS, is_feed_name};
use crate::ids::{ContentId, JobId, NodeId};
use crate::limits;
use crate::locality::Selector;
use crate::membership::Member;
use minicbor::{Decode, Encode};

/// Number of hash buckets: a bucket is a millionth of the hosts.
pub const HASH_BUCKETS: u32 = 1_000_000;

/// A set of hosts in a document.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Hosts {
    /// Every host.
    #[n(0)]
    All,
    /// By labels and locality.
    #[n(1)]
    Selector(#[n(0)] Selector),
    /// Hosts whose bucket for the name, out of [`HASH_BUCKETS`], is at least `from` and less than `to`.
    #[n(2)]
    HashRange {
        /// The first bucket of the range.
        #[n(0)]
        from: u32,
        /// The first bucket after the range.
        #[n(1)]
        to: u32,
    },
    /// By roster index.
    #[n(3)]
    Indices(
        #[n(0)]
        #[cbor(decode_with = "crate::bitmap::decode_hosts")]
        Bitmap,
    ),
}

/// Returns the bucket of a host for a name, below [`HASH_BUCKETS`]. It is a hash, so it stays when hosts join or leave.
pub fn hash_bucket(node: &NodeId, name: &str) -> u32 {
    let hash = blake3::Hasher::new().update(b"shoal share ").update(node.as_bytes()).update(name.as_bytes()).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_be_bytes(first) % u64::from(HASH_BUCKETS)) as u32
}

impl Hosts {
    /// Whether a host is in the set, for the contents of this name.
    pub fn has(&self, name: &str, member: &Member) -> bool {
        match self {
            Self::All => true,
            Self::Selector(selector) => selector.matches(&member.locality, &member.labels),
            Self::HashRange { from, to } => (*from..*to).contains(&hash_bucket(&member.node, name)),
            Self::Indices(hosts) => hosts.get(member.index.0),
        }
    }

    fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Selector(selector) if !selector.is_valid() => {
                Err(DecodeError::invalid("hosts", selector.to_string()))
            }
            Self::HashRange { from, to } if from > to || *to > HASH_BUCKETS => {
                Err(DecodeError::invalid("hosts", format!("the range from {from} to {to}")))
            }
            _ => Ok(()),
        }
    }
}

/// The version that a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Target {
    /// The label of the version.
    #[n(0)]
    pub version: String,
    /// The content of the version.
    #[n(1)]
    pub content: ContentId,
    /// The sequence of the version in the order of the name.
    #[n(2)]
    pub sequence: u64,
}

/// Asks some hosts for one version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Rule {
    /// The hosts.
    #[n(0)]
    pub hosts: Hosts,
    /// The version.
    #[n(1)]
    pub target: Target,
}

/// The desired state of a name.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Desired {
    /// The name.
    #[n(0)]
    pub name: String,
    /// The rollout. Hosts report on it as on a job.
    #[n(1)]
    pub rollout: JobId,
    /// Grows within a rollout and is odd. A host switches at most once per attempt. The next even number belongs to the
    /// host, for a failure after its switch.
    #[n(2)]
    pub attempt: u16,
    /// No further host starts to switch.
    #[n(3)]
    pub paused: bool,
    /// Hosts that switched in this rollout return to their former version.
    #[n(4)]
    pub back: bool,
    /// Hosts that have switched keep running their probes.
    #[n(5)]
    pub watch: bool,
    /// The first rule that contains a host applies to it. At most [`limits::DESIRED_RULES_MAX`].
    #[n(6)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::DESIRED_RULES_MAX }, _, _>")]
    pub rules: Vec<Rule>,
    /// Hosts that may switch now.
    #[n(7)]
    pub open: Hosts,
    /// The greatest sequence of the pushes and promotions that the rollout replaces, 0 for none. A host that is on its
    /// version ignores them, also when they arrive later.
    #[n(8)]
    #[cbor(default, skip_if = "is_zero")]
    pub replaces: u64,
}

fn is_zero(sequence: &u64) -> bool {
    *sequence == 0
}

impl Desired {
    /// Returns the version that a host must have.
    pub fn target(&self, member: &Member) -> Option<&Target> {
        self.rules.iter().find(|rule| rule.hosts.has(&self.name, member)).map(|rule| &rule.target)
    }

    /// Whether a host may start to switch.
    pub fn may_switch(&self, member: &Member) -> bool {
        !self.paused && self.open.has(&self.name, member)
    }
}

/// Returns the feed of the desired states of a name. `None` means that the name is too long.
pub fn feed_of(name: &str) -> Option<String> {
    let feed = format!("{DESIRED_FEEDS}{name}");
    is_feed_name(&feed).then_some(feed)
}

/// Returns the name whose desired states a feed carries. `None` means that it is another feed.
pub fn name_of(feed: &str) -> Option<&str> {
    feed.strip_prefix(DESIRED_FEEDS)
}

impl Document for Desired {
    const KIND: DocKind = DocKind::Desired;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::DESIRED_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        if !is_content_name(&self.name) || feed_of(&self.name).is_none() {
            return Err(DecodeError::invalid("name", format!("`{}`", self.name)));
        }
        if self.attempt.is_multiple_of(2) {
            return Err(DecodeError::invalid("attempt", self.attempt.to_string()));
        }
        self.open.validate()?;
        for rule in &self.rules {
            rule.hosts.validate()?;
            if !is_version(&rule.target.version) {
                return Err(DecodeError::invalid("version", format!("`{}`", rule.target.version)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_stay() {
        let node = |number: u32| NodeId(*blake3::hash(&number.to_be_bytes()).as_bytes());
        let tenth = (0..10_000).filter(|number| hash_bucket(&node(*number), "edge/a") < HASH_BUCKETS / 10).count();
        assert!((850..1150).contains(&tenth), "{tenth}");
        // Another name draws other hosts.
        let both = |number: &u32| {
            hash_bucket(&node(*number), "edge/a") < HASH_BUCKETS / 10
                && hash_bucket(&node(*number), "edge/b") < HASH_BUCKETS / 10
        };
        let both = (0..10_000).filter(both).count();
        assert!((50..200).contains(&both), "{both}");
        assert_eq!(hash_bucket(&node(1), "edge/a"), 459_610);
    }

    #[test]
    fn the_worst_set_of_hosts_fits() {
        let open = Hosts::Indices((0..limits::HOSTS_MAX).step_by(2).collect());
        let target = Target { version: "v".repeat(63), content: ContentId([1; 32]), sequence: u64::MAX };
        let rule = Rule { hosts: Hosts::HashRange { from: 0, to: HASH_BUCKETS }, target };
        let rules = vec![rule; limits::DESIRED_RULES_MAX];
        let name = ["n".repeat(60), "n".repeat(50)].join("/");
        let (rollout, attempt) = (JobId([1; 16]), 1);
        let (paused, back, watch, replaces) = (false, false, true, u64::MAX);
        let desired = Desired { name, rollout, attempt, paused, back, watch, rules, open, replaces };
        let bytes = desired.to_bytes();
        assert!(bytes.len() < limits::DESIRED_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Desired::from_bytes(&bytes).unwrap(), desired);
    }

    #[test]
    fn feeds_have_names() {
        assert_eq!(feed_of("edge/a").as_deref(), Some("desired/edge/a"));
        assert_eq!(name_of("desired/edge/a"), Some("edge/a"));
        assert_eq!(name_of("gslb/main"), None);
        assert_eq!(feed_of(&"x".repeat(limits::NAME_BYTES_MAX)), None);
    }
}
