//! The check of membership rows against the credentials in them, before the driver uses them.
//!
//! A tracker decides which hosts are up. What a host is, where it is and at which addresses, only the host's signed
//! credential says. Invariant: a row that passes fits a credential that was valid for the row's key when the row came.

use prometheus_client::metrics::counter::Counter;
use shoal_net::admission::Admission;
use shoal_proto::codec::encode;
use shoal_proto::ids::{HostIndex, NodeId};
use shoal_proto::membership::{Member, MembershipUpdate, Presence, RowError};
use shoal_proto::trust::TrustError;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A change of the clock by more than this asks for all rows again, seconds.
const CLOCK_STEP_S: u64 = 60;
/// Shortest time between two log lines about refused rows.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Why a row is refused.
#[derive(Debug, thiserror::Error)]
enum RowRefusal {
    #[error("the row came without a credential")]
    NoCredential,
    #[error(transparent)]
    Credential(#[from] TrustError),
    #[error(transparent)]
    Row(#[from] RowError),
}

/// A row that passed.
struct CheckedRow {
    /// The hash of what the check depends on.
    claims: blake3::Hash,
    credential: Arc<[u8]>,
}

/// What decided that a row was refused. Another trust document or another time may admit the row.
struct Refused {
    trust_version: u64,
    /// The Unix time at which the check began, by the clock of that moment. It changes only when the clock is set.
    clock_s: u64,
}

/// The checked rows of this host's membership. A signature is verified once, and again only when the row's claims or
/// its credential change.
pub(crate) struct RowCheck {
    admission: Admission,
    rows: HashMap<NodeId, CheckedRow>,
    /// Under what a row was refused last.
    refused: Option<Refused>,
    refusals: Counter,
    began: Instant,
    warned_at: Option<Instant>,
}

impl RowCheck {
    pub(crate) fn new(admission: Admission, refusals: Counter) -> Self {
        Self { admission, rows: HashMap::new(), refused: None, refusals, began: Instant::now(), warned_at: None }
    }

    /// Takes over the rows on this host's disk, which were checked when they came.
    pub(crate) fn trust<'a>(&mut self, rows: impl Iterator<Item = &'a Member>) {
        for row in rows.filter(|row| !row.credential.is_empty()) {
            self.remember(row, claims_of(row));
        }
    }

    /// Removes the rows that do not pass from a tracker's update, and fills in the credentials that the tracker left
    /// out.
    ///
    /// A former row of a host that does not pass goes too, so that no stale row stands for the host.
    pub(crate) fn filter_update(&mut self, update: &mut MembershipUpdate) {
        if update.base.is_none() {
            self.refused = None;
        }
        let refused = self.filter(&mut update.upserts, "tracker");
        if update.base.is_none() {
            let present: HashSet<NodeId> = update.upserts.iter().map(|row| row.node).collect();
            self.rows.retain(|node, _| present.contains(node));
        } else {
            update.removed.extend(refused);
        }
    }

    /// Removes the rows that do not pass from a rack peer's list.
    pub(crate) fn filter_list(&mut self, rows: &mut Vec<Member>) {
        self.filter(rows, "rack peer");
    }

    /// Whether a whole membership is needed, because the trust document changed since a row was refused, or somebody
    /// set the clock.
    pub(crate) fn needs_whole(&self) -> bool {
        let now = self.present();
        self.refused.as_ref().is_some_and(|then| {
            then.trust_version != now.trust_version || then.clock_s.abs_diff(now.clock_s) > CLOCK_STEP_S
        })
    }

    /// Returns what decides now whether a row passes, beside the row.
    fn present(&self) -> Refused {
        let clock_s = self.admission.now().saturating_sub(self.began.elapsed().as_secs());
        Refused { trust_version: self.admission.trust().version(), clock_s }
    }

    /// Removes the rows that do not pass and returns their roster indexes.
    fn filter(&mut self, rows: &mut Vec<Member>, from: &'static str) -> Vec<HostIndex> {
        let (mut refused, mut first) = (Vec::new(), None);
        rows.retain_mut(|row| match self.pass(row) {
            Ok(()) => true,
            Err(error) => {
                refused.push(row.index);
                first.get_or_insert_with(|| (row.locality.clone(), error));
                false
            }
        });
        if let Some((host, error)) = first {
            self.refusals.inc_by(refused.len() as u64);
            self.refused = Some(self.present());
            if self.warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                self.warned_at = Some(Instant::now());
                tracing::warn!(from, rows = refused.len(), %host, %error, "refused rows of a membership");
            }
        }
        refused
    }

    fn pass(&mut self, row: &mut Member) -> Result<(), RowRefusal> {
        let known = self.rows.get(&row.node);
        if row.credential.is_empty() {
            row.credential = known.map(|known| known.credential.clone()).ok_or(RowRefusal::NoCredential)?;
        }
        let claims = claims_of(row);
        if known.is_some_and(|known| known.claims == claims) {
            return Ok(());
        }
        let credential = self.admission.admit(&row.credential, row.node)?;
        row.check_against(&credential)?;
        self.remember(row, claims);
        Ok(())
    }

    fn remember(&mut self, row: &Member, claims: blake3::Hash) {
        self.rows.insert(row.node, CheckedRow { claims, credential: row.credential.clone() });
    }
}

/// Returns the hash of what a credential must cover: all of the row but what the tracker alone says.
fn claims_of(row: &Member) -> blake3::Hash {
    let claims = Member { index: HostIndex(0), uplink_mbit: 0, presence: Presence::Up, ..row.clone() };
    blake3::hash(&encode(&claims))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_net::admission::{UnixClock, system_clock};
    use shoal_proto::codec::Document;
    use shoal_proto::ids::Epoch;
    use shoal_proto::trust::{Credential, Envelope, Keypair, Role, Trust, TrustDocument};
    use std::sync::atomic::{AtomicU64, Ordering};

    const ROOT: u8 = 1;

    fn row(number: u8, signer: u8, change: impl FnOnce(&mut Credential)) -> Member {
        let (keys, root) = (Keypair::from_seed([number; 32]), Keypair::from_seed([ROOT; 32]));
        let now = system_clock();
        let mut credential = Credential {
            cluster: TrustDocument::first(root.node(), []).cluster,
            node: keys.node(),
            role: Role::Peer,
            locality: format!("r/s/k/h{number}").parse().unwrap(),
            not_before: now - 100,
            not_after: now + 100,
            labels: [("gpu".to_string(), "yes".to_string())].into(),
            weight_max: 100,
            addresses: vec!["10.0.0.0/8".parse().unwrap()],
        };
        let honest = credential.clone();
        change(&mut credential);
        Member {
            index: HostIndex(u32::from(number)),
            node: honest.node,
            role: honest.role,
            locality: honest.locality,
            labels: honest.labels,
            addrs: vec!["10.0.0.1:7700".parse().unwrap()],
            weight: 100,
            uplink_mbit: 0,
            presence: Presence::Up,
            credential: Envelope::seal(&credential, &Keypair::from_seed([signer; 32])).to_bytes().into(),
        }
    }

    fn check() -> RowCheck {
        check_by(system_clock)
    }

    fn check_by(clock: UnixClock) -> RowCheck {
        let root = Keypair::from_seed([ROOT; 32]);
        let document = Envelope::seal(&TrustDocument::first(root.node(), []), &root).to_bytes();
        let trust = Arc::new(Trust::open(&document, None).unwrap());
        RowCheck::new(Admission::new(trust, Vec::new(), clock), Counter::default())
    }

    fn update(base: Option<u64>, upserts: Vec<Member>) -> MembershipUpdate {
        MembershipUpdate { epoch: Epoch(9), base: base.map(Epoch), upserts, removed: Vec::new() }
    }

    fn passes(check: &mut RowCheck, row: Member) -> bool {
        let mut update = update(Some(1), vec![row.clone()]);
        check.filter_update(&mut update);
        assert_eq!(update.removed, if update.upserts.is_empty() { vec![row.index] } else { vec![] });
        !update.upserts.is_empty()
    }

    #[test]
    fn rows_pass_only_as_their_credentials_say() {
        let mut check = check();
        assert!(passes(&mut check, row(1, ROOT, |_| {})));
        let lies: [fn(&mut Member); 8] = [
            |row| row.node = NodeId([9; 32]),
            |row| row.role = Role::Seeder,
            |row| row.locality = "r/s/other/h1".parse().unwrap(),
            |row| row.labels.clear(),
            |row| row.weight = 101,
            |row| row.addrs = vec!["127.0.0.1:22".parse().unwrap()],
            |row| row.addrs.push("11.0.0.1:7700".parse().unwrap()),
            |row| row.credential = [1, 2, 3].into(),
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            for base in [row(1, ROOT, |_| {}), row(2, ROOT, |_| {})] {
                let mut false_row = base;
                lie(&mut false_row);
                assert!(!passes(&mut check, false_row), "lie {number}");
            }
        }
        assert!(!passes(&mut check, row(3, 2, |_| {})), "another root signed");
        assert!(!passes(&mut check, row(4, ROOT, |it| it.not_after = it.not_before + 1)), "expired");
        assert!(!passes(&mut check, row(5, ROOT, |it| it.cluster.0 = [0; 32])), "another cluster");
        assert_eq!(check.refusals.get(), 19);
        assert!(passes(&mut check, row(1, ROOT, |_| {})), "a lie changes nothing about the true row");
    }

    #[test]
    fn a_delta_may_leave_out_a_known_credential_and_nothing_else() {
        let mut check = check();
        let known = row(1, ROOT, |_| {});
        let bare = Member { credential: Arc::default(), presence: Presence::Away, ..known.clone() };
        assert!(!passes(&mut check, bare.clone()), "no credential is known yet");
        check.filter_update(&mut update(None, vec![known.clone()]));
        let mut delta = update(Some(1), vec![bare.clone()]);
        check.filter_update(&mut delta);
        assert_eq!(delta.upserts, [Member { presence: Presence::Away, ..known.clone() }]);
        assert!(!passes(&mut check, Member { addrs: vec!["11.0.0.1:1".parse().unwrap()], ..bare.clone() }));
        // A whole membership without the host ends what is known of it.
        check.filter_update(&mut update(None, vec![row(2, ROOT, |_| {})]));
        assert!(!passes(&mut check, bare.clone()));
        check.trust([known].iter());
        assert!(passes(&mut check, bare));
    }

    #[test]
    fn a_newer_trust_document_asks_for_the_rows_again() {
        let mut check = check();
        assert!(!passes(&mut check, row(1, 7, |_| {})));
        assert!(!check.needs_whole());
        let root = Keypair::from_seed([ROOT; 32]);
        let newer = TrustDocument { version: 2, ..TrustDocument::first(root.node(), []) };
        check.admission.offer(&Envelope::seal(&newer, &root).to_bytes()).unwrap();
        assert!(check.needs_whole());
        check.filter_update(&mut update(None, vec![row(2, ROOT, |_| {})]));
        assert!(!check.needs_whole());
    }
    #[test]
    fn a_set_clock_asks_for_the_rows_again() {
        static BEHIND_S: AtomicU64 = AtomicU64::new(1000);
        let mut check = check_by(|| system_clock() - BEHIND_S.load(Ordering::Relaxed));
        assert!(!passes(&mut check, row(1, ROOT, |_| {})), "by this clock the credential is not valid yet");
        assert!(!check.needs_whole());
        BEHIND_S.store(0, Ordering::Relaxed);
        assert!(check.needs_whole());
        check.filter_update(&mut update(None, vec![row(1, ROOT, |_| {})]));
        assert!(!check.needs_whole());
        assert!(passes(&mut check, row(1, ROOT, |_| {})));
    }
}
