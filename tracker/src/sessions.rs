//! The hosts that have joined, each on one connection, and who else tried to join in their place.
//!
//! Two machines with one key would change one row of the roster in turn, and nobody would notice. So the tracker keeps
//! the first one while it answers, refuses the other, and tells operators.
//! Invariant: a key has at most one session, and so has a locality.

use crate::pace::{Pace, Rate};
use shoal_net::control::ConnectionId;
use shoal_net::log_limit::LogLimit;
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::locality::Locality;
use shoal_proto::trust::{Admitted, Role};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Requests of one key to join, or for a first credential. A host that lost its tracker tries again within 200 ms at
/// first, and within 15 s later.
const JOINS: Rate = Rate { burst: 10.0, per_second: 0.5 };
/// Requests of one peer. A peer waits at least 50 ms between two beats.
const REQUESTS: Rate = Rate { burst: 200.0, per_second: 50.0 };
/// Updates to a host that says that it lost a membership which it had.
const REPEATED_UPDATES: Rate = Rate { burst: 3.0, per_second: 1.0 };
/// How long operators see that a host has a duplicate.
const DUPLICATE_SHOWN: Duration = Duration::from_secs(600);
/// Duplicates in the log: one line per host and minute, and this many lines of all hosts per second.
const DUPLICATE_LOGGED: Duration = Duration::from_secs(60);
const DUPLICATE_LINES: u32 = 2;

/// Why a node may not join now.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinRefusal {
    #[error(
        "another connection with this key answers; stop the host that runs with a copy of the key, and issue another \
         key for it"
    )]
    KeyInUse,
    #[error("host {0} with another key is up at this locality: stop it, or issue a credential for another locality")]
    LocalityInUse(HostIndex),
}

/// Why a request for an image is not forwarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageRequestError {
    #[error("join first")]
    NotJoined,
    #[error("too many requests: wait between requests")]
    TooOften,
    #[error("no seeder is connected")]
    NoSeeder,
}

/// Who must answer a host's request for an image.
#[derive(Debug)]
pub(crate) struct ImageRequest {
    pub(crate) seeder: NodeId,
    pub(crate) asker: HostIndex,
}

/// A host that has joined on its present connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) index: HostIndex,
    pub(crate) role: Role,
    pub(crate) connection: ConnectionId,
    pub(crate) credential: Admitted,
    pub(crate) last_beat: Instant,
    /// The newest membership epoch that the host is known to have.
    pub(crate) epoch: Epoch,
    /// A membership update is on its way to the host.
    pub(crate) updating: bool,
    /// The version of the host's trust document, 0 before its first beat.
    pub(crate) trust: u64,
    /// A trust document is on its way to the host.
    pub(crate) trusting: bool,
    requests: Pace,
    repeated: Pace,
}

impl Session {
    pub(crate) fn new(index: HostIndex, connection: ConnectionId, credential: Admitted, epoch: Epoch) -> Self {
        let now = Instant::now();
        let (requests, repeated) = (Pace::new(REQUESTS, now), Pace::new(REPEATED_UPDATES, now));
        let role = credential.role;
        Self {
            index,
            role,
            connection,
            credential,
            last_beat: now,
            epoch,
            updating: false,
            trust: 0,
            trusting: false,
            requests,
            repeated,
        }
    }

    /// Whether the host may send one more request now. Seeders ask for each job and each operator.
    pub(crate) fn may_request(&mut self) -> bool {
        self.role == Role::Seeder || self.requests.pass(Instant::now())
    }

    /// Notes the epoch that the host says it has, beside the present one. Returns whether an update may go out. A whole
    /// membership has megabytes, so a host that lost it again and again waits.
    pub(crate) fn on_known(&mut self, known: Epoch, present: Epoch) -> bool {
        let may = (self.epoch..=present).contains(&known) || self.repeated.pass(Instant::now());
        if may {
            self.epoch = known;
        }
        may
    }
}

/// Attempts to take a host's place.
#[derive(Debug)]
struct Duplicate {
    last: Instant,
    logged: Option<Instant>,
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    by_node: HashMap<NodeId, Session>,
    by_locality: HashMap<Locality, NodeId>,
    joins: HashMap<NodeId, Pace>,
    /// By the host whose place it was.
    duplicates: HashMap<HostIndex, Duplicate>,
    refused_duplicates: u64,
    log: LogLimit,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            by_node: HashMap::new(),
            by_locality: HashMap::new(),
            joins: HashMap::new(),
            duplicates: HashMap::new(),
            refused_duplicates: 0,
            log: LogLimit::new(DUPLICATE_LINES, Duration::from_secs(1)),
        }
    }
}

impl Sessions {
    /// Returns the session of a node on this connection.
    pub(crate) fn on(&mut self, node: &NodeId, connection: ConnectionId) -> Option<&mut Session> {
        self.by_node.get_mut(node).filter(|session| session.connection == connection)
    }

    /// Returns the session of a node on any connection.
    pub(crate) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Session> {
        self.by_node.get_mut(node)
    }

    pub(crate) fn get(&self, node: &NodeId) -> Option<&Session> {
        self.by_node.get(node)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Session)> {
        self.by_node.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&NodeId, &mut Session)> {
        self.by_node.iter_mut()
    }

    /// Counts a request to join, or for a first credential. Returns whether a node with this key may send it now.
    pub(crate) fn may_ask_to_join(&mut self, node: &NodeId) -> bool {
        let now = Instant::now();
        self.joins.entry(*node).or_insert_with(|| Pace::new(JOINS, now)).pass(now)
    }

    /// Checks whether a node with a valid credential may join on a connection.
    pub(crate) fn may_join(&mut self, credential: &Admitted, connection: ConnectionId) -> Result<(), JoinRefusal> {
        let (node, now) = (credential.node, Instant::now());
        if let Some(session) = self.by_node.get(&node).filter(|session| session.connection != connection) {
            let index = session.index;
            self.note_duplicate(index, credential, now);
            return Err(JoinRefusal::KeyInUse);
        }
        let other = self.by_locality.get(&credential.locality).filter(|other| **other != node);
        if let Some(index) = other.and_then(|other| self.by_node.get(other)).map(|session| session.index) {
            self.note_duplicate(index, credential, now);
            return Err(JoinRefusal::LocalityInUse(index));
        }
        Ok(())
    }

    fn note_duplicate(&mut self, index: HostIndex, second: &Admitted, now: Instant) {
        self.refused_duplicates += 1;
        let duplicate = self.duplicates.entry(index).or_insert(Duplicate { last: now, logged: None });
        duplicate.last = now;
        let is_due = duplicate.logged.is_none_or(|at| now.saturating_duration_since(at) >= DUPLICATE_LOGGED);
        if is_due && self.log.pass().is_some() {
            duplicate.logged = Some(now);
            let (locality, node) = (&second.locality, second.node.short());
            tracing::warn!(%index, %locality, %node, "refused a second live host in the place of a host that answers");
        }
    }

    /// Begins a session.
    pub(crate) fn begin(&mut self, session: Session) {
        let node = session.credential.node;
        self.by_locality.insert(session.credential.locality.clone(), node);
        if let Some(former) = self.by_node.insert(node, session) {
            self.forget_locality(&former, &node);
        }
    }

    /// Ends the session of a node.
    pub(crate) fn end(&mut self, node: &NodeId) -> Option<Session> {
        let session = self.by_node.remove(node)?;
        self.forget_locality(&session, node);
        Some(session)
    }

    /// Forgets the place of an ended session, unless the node has it still.
    fn forget_locality(&mut self, ended: &Session, node: &NodeId) {
        let locality = &ended.credential.locality;
        let keeps = self.by_node.get(node).is_some_and(|session| session.credential.locality == *locality);
        if !keeps && self.by_locality.get(locality) == Some(node) {
            self.by_locality.remove(locality);
        }
    }

    /// Returns the seeder that answers requests for images, and the index of the asking host. All requests go to the
    /// seeder with the lowest key, so that one seeder sees all requests for one image.
    pub(crate) fn image_request(
        &mut self,
        from: &NodeId,
        connection: ConnectionId,
    ) -> Result<ImageRequest, ImageRequestError> {
        let session = self.on(from, connection).filter(|session| session.role == Role::Peer);
        let session = session.ok_or(ImageRequestError::NotJoined)?;
        if !session.may_request() {
            return Err(ImageRequestError::TooOften);
        }
        let asker = session.index;
        let seeders = self.iter().filter(|(_, session)| session.role == Role::Seeder);
        let seeder = seeders.map(|(node, _)| *node).min().ok_or(ImageRequestError::NoSeeder)?;
        Ok(ImageRequest { seeder, asker })
    }

    /// Forgets what is no longer needed.
    pub(crate) fn sweep(&mut self) {
        let now = Instant::now();
        self.joins.retain(|_, pace| !pace.is_full(now));
        self.duplicates.retain(|_, duplicate| now.saturating_duration_since(duplicate.last) < DUPLICATE_SHOWN);
    }

    /// Whether another host tried to join in the place of this one a short time ago.
    pub(crate) fn has_duplicate(&self, host: HostIndex) -> bool {
        self.duplicates.contains_key(&host)
    }

    /// Returns the hosts in whose place another host tried to join.
    pub(crate) fn duplicates(&self) -> impl Iterator<Item = HostIndex> {
        self.duplicates.keys().copied()
    }

    pub(crate) fn refused_duplicates(&self) -> u64 {
        self.refused_duplicates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::codec::Document;
    use shoal_proto::trust::{Credential, Envelope, Keypair, Trust, TrustDocument, cluster_of};

    /// The admitted credential of key `number` at `host`.
    fn credential(number: u8, host: &str) -> Admitted {
        let (root, node) = (Keypair::from_seed([200; 32]), Keypair::from_seed([number; 32]).node());
        let document = TrustDocument { version: 1, ..TrustDocument::first(root.node(), []) };
        let trust = Trust::open(&Envelope::seal(&document, &root).to_bytes(), None).unwrap();
        let credential = Credential {
            cluster: cluster_of(&root.node()),
            node,
            role: Role::Peer,
            locality: Locality::new("r", "s", "k", host).unwrap(),
            not_before: 1,
            not_after: 100,
            labels: Default::default(),
            weight_max: 1,
            addresses: Vec::new(),
        };
        trust.admit(&Envelope::seal(&credential, &root).to_bytes(), node, 50).unwrap()
    }

    fn connection(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn session(index: u32, number: u8, host: &str, on: usize) -> Session {
        Session::new(HostIndex(index), connection(on), credential(number, host), Epoch(1))
    }

    #[test]
    fn a_key_and_a_locality_have_one_live_session() {
        let mut sessions = Sessions::default();
        let (first, copy, other) = (credential(1, "a"), credential(1, "a"), credential(2, "a"));
        sessions.may_join(&first, connection(1)).unwrap();
        sessions.begin(session(0, 1, "a", 1));
        assert_eq!(sessions.may_join(&copy, connection(2)), Err(JoinRefusal::KeyInUse));
        assert_eq!(sessions.may_join(&other, connection(3)), Err(JoinRefusal::LocalityInUse(HostIndex(0))));
        sessions.may_join(&first, connection(1)).unwrap();
        assert!(sessions.on(&first.node, connection(2)).is_none() && sessions.has_duplicate(HostIndex(0)));
        assert_eq!((sessions.refused_duplicates(), sessions.duplicates().count()), (2, 1));
        // The host moves: its new credential names another place.
        sessions.begin(session(0, 1, "b", 1));
        sessions.may_join(&other, connection(3)).unwrap();
        sessions.end(&first.node);
        sessions.may_join(&credential(3, "b"), connection(4)).unwrap();
        assert!(sessions.by_locality.is_empty() && sessions.by_node.is_empty());
    }

    #[test]
    fn one_key_joins_only_so_often() {
        let mut sessions = Sessions::default();
        let node = credential(1, "a").node;
        let asked = (0..100).filter(|_| sessions.may_ask_to_join(&node)).count();
        assert_eq!(asked, JOINS.burst as usize);
        sessions.sweep();
        assert!(!sessions.may_ask_to_join(&node));
    }

    #[test]
    fn a_host_that_claims_to_know_nothing_gets_few_memberships() {
        let mut session = session(0, 1, "a", 1);
        session.epoch = Epoch(9);
        let mut sent = 0;
        for claim in (0..100).map(|number| Epoch(if number % 2 == 0 { 0 } else { u64::MAX })) {
            if session.on_known(claim, Epoch(9)) {
                (sent, session.epoch) = (sent + 1, Epoch(9));
            }
        }
        assert!((3..=4).contains(&sent), "{sent}");
        assert!(session.on_known(Epoch(9), Epoch(9)));
    }
}
