//! Credentials for hosts that join with a token, and for hosts whose credentials end.
//!
//! Owns: the issuer's key, who used which token, and which key has which place.
//! Invariant: a use of a token, and the place that it took, survive a loss of power before the host gets its
//! credential.

use crate::kubeedge::NodeError;
use crate::tables::{PLACES, TOKENS};
use minicbor::{Decode, Encode};
use shoal_kv::{Change, Database, KvError, Table};
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::ids::NodeId;
use shoal_proto::limits::CLOCK_SKEW_MAX_S;
use shoal_proto::locality::Locality;
use shoal_proto::trust::{Admitted, Credential, Envelope, JoinToken, Keypair, TokenError, Trust, TrustError};
use std::collections::HashMap;
use std::sync::Arc;

/// One host's use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct TokenUse {
    /// The place that the host got.
    #[n(0)]
    pub(crate) locality: Locality,
    /// End of the token, Unix seconds. The row is of no use afterwards.
    #[n(1)]
    pub(crate) until: u64,
}

/// Who has a place.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Holder {
    /// The key of the host.
    #[n(0)]
    pub(crate) node: NodeId,
    /// End of the host's last credential, Unix seconds. The place is free afterwards.
    #[n(1)]
    pub(crate) until: u64,
}

/// Why a host gets no credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error("this tracker issues no credentials: set `issuer_key` in its configuration, or name another tracker")]
    NoKey,
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("the token is invalid: create another one with `shoal cluster token create`")]
    Token(#[source] TrustError),
    #[error(transparent)]
    Use(#[from] TokenError),
    #[error(
        "{0} is taken by another key: name another host with `--name`, or revoke the former one with \
         `shoal cluster revoke`"
    )]
    Taken(Locality),
    #[error("this tracker serves region {own}, not {asked}: name a tracker of that region")]
    OtherRegion { own: String, asked: String },
    #[error("this host's key is revoked: remove `node.key` and join with a new key")]
    Revoked,
    #[error(
        "the last host at {0} is revoked, so a certificate alone gives nobody this locality: join with a token, or give \
         the node another locality"
    )]
    RevokedHolder(Locality),
    #[error("no issuer of this tracker may sign the credential: add an issuer with a wider mandate")]
    Mandate(#[source] TrustError),
    #[error("the credential is renewed when at most half of its validity is left: ask later")]
    NotDue,
    #[error("the host has no valid credential: join again")]
    NotAdmitted(#[source] TrustError),
    #[error("cannot write the tracker's records: see the tracker's log")]
    Database(#[from] KvError),
}

/// How long rows are kept after their end, seconds: 400 days. A clock that is ahead for a while must not make the
/// tracker forget which tokens are used up.
const KEPT_S: u64 = 400 * 86_400;

/// What the tracker knows of a request.
pub(crate) struct Asked<'a> {
    pub(crate) trust: &'a Trust,
    /// The region that the tracker serves.
    pub(crate) region: &'a str,
    /// The proven key of the host.
    pub(crate) node: NodeId,
    pub(crate) now: u64,
}

/// Issues credentials, if the tracker has a key for it.
pub(crate) struct Issuing {
    keys: Option<Keypair>,
    database: Arc<dyn Database>,
    /// Key of the token and key of the host to [`TokenUse`].
    tokens: Table,
    /// Locality to [`Holder`].
    places: Table,
    /// Uses of each token.
    uses: HashMap<NodeId, u32>,
}

impl Issuing {
    /// Continues from the disk. Rows of tokens and credentials go long after their end.
    pub(crate) fn open(database: &Arc<dyn Database>, keys: Option<Keypair>, now: u64) -> Result<Self, KvError> {
        let (tokens, places) = (Table::new(database, TOKENS), Table::new(database, PLACES));
        let mut uses: HashMap<NodeId, u32> = HashMap::new();
        let mut ended = Vec::new();
        for row in tokens.scan([])? {
            let token = row.key.first_chunk::<32>().map(|key| NodeId(*key));
            match (token, decode_exact::<TokenUse>(&row.value)) {
                (Some(token), Ok(used)) if used.until.saturating_add(KEPT_S) > now => {
                    *uses.entry(token).or_default() += 1
                }
                _ => ended.push(Change::Delete { key: row.key }),
            }
        }
        tokens.apply(&ended)?;
        let is_over = |value: &[u8]| {
            decode_exact::<Holder>(value).map_or(true, |holder| holder.until.saturating_add(KEPT_S) <= now)
        };
        let free = places.scan([])?.into_iter().filter(|row| is_over(&row.value));
        places.apply(&free.map(|row| Change::Delete { key: row.key }).collect::<Vec<_>>())?;
        Ok(Self { keys, database: database.clone(), tokens, places, uses })
    }

    /// Issues a credential for a token. A host that asks again with the same key gets the same place and counts once.
    /// `occupant` returns the key of the host that the roster has at a place.
    pub(crate) fn enrol(
        &mut self,
        asked: &Asked<'_>,
        token: &[u8],
        claim: &[u8],
        occupant: impl Fn(&Locality) -> Option<NodeId>,
    ) -> Result<Vec<u8>, IssueError> {
        let Asked { trust, node, now, .. } = *asked;
        let Some(keys) = self.keys.clone() else { return Err(IssueError::NoKey) };
        let envelope = Envelope::from_bytes(token).map_err(|error| IssueError::Token(error.into()))?;
        let token = trust.open_token(&envelope).map_err(IssueError::Token)?;
        let claim = token.open_claim(claim, node)?;
        if token.not_after <= now {
            return Err(TokenError::Expired { not_after: token.not_after, now }.into());
        }
        if trust.is_revoked(&node) {
            return Err(IssueError::Revoked);
        }
        let key = [token.key.0, node.0].concat();
        let former = self.tokens.get(&key)?.and_then(|bytes| decode_exact::<TokenUse>(&bytes).ok());
        let locality = match (&former, &claim.name) {
            (Some(TokenUse { locality, .. }), Some(name)) if *name != locality.host => {
                return Err(TokenError::OtherName { place: locality.to_string(), name: name.clone() }.into());
            }
            (Some(former), _) => former.locality.clone(),
            (None, _) => token.locality_of(claim.name.as_deref(), &node)?,
        };
        let is_new = former.is_none();
        if is_new && self.uses.get(&token.key).copied().unwrap_or(0) >= token.uses {
            return Err(TokenError::UsedUp(token.uses).into());
        }
        let credential = token.credential(node, locality, now);
        trust.check_mandate(envelope.signer(), &credential, now).map_err(IssueError::Mandate)?;
        self.check_place(asked, keys.node(), &credential, occupant(&credential.locality))?;
        self.record_use(key, &token, &credential)?;
        if is_new {
            *self.uses.entry(token.key).or_default() += 1;
        }
        Ok(Envelope::seal(&credential, &keys).to_bytes())
    }

    /// Issues a credential for a host of the operator's list, which has proven its name.
    pub(crate) fn enrol_listed(
        &mut self,
        asked: &Asked<'_>,
        credential: &Credential,
        occupant: impl Fn(&Locality) -> Option<NodeId>,
    ) -> Result<Vec<u8>, IssueError> {
        let Some(keys) = &self.keys else { return Err(IssueError::NoKey) };
        if asked.trust.is_revoked(&asked.node) {
            return Err(IssueError::Revoked);
        }
        let locality = &credential.locality;
        let holder = self.places.get(locality.to_string())?.and_then(|bytes| decode_exact::<Holder>(&bytes).ok());
        let mut former = holder.map(|holder| holder.node).into_iter().chain(occupant(locality));
        if former.any(|node| asked.trust.is_revoked(&node)) {
            // Whoever stole the host has the certificate, too.
            return Err(IssueError::RevokedHolder(locality.clone()));
        }
        self.check_place(asked, keys.node(), credential, occupant(locality))?;
        self.hold(credential)?;
        self.database.sync()?;
        Ok(Envelope::seal(credential, keys).to_bytes())
    }

    /// Checks that the issuer may sign the credential and that its place is free.
    fn check_place(
        &self,
        Asked { trust, region, node, now }: &Asked<'_>,
        issuer: NodeId,
        credential: &Credential,
        occupant: Option<NodeId>,
    ) -> Result<(), IssueError> {
        let locality = &credential.locality;
        trust.check_mandate(issuer, credential, *now).map_err(IssueError::Mandate)?;
        if locality.region != *region {
            return Err(IssueError::OtherRegion { own: region.to_string(), asked: locality.region.clone() });
        }
        let holder = self.places.get(locality.to_string())?.and_then(|bytes| decode_exact::<Holder>(&bytes).ok());
        let holder = holder.filter(|holder| holder.until > *now).map(|holder| holder.node);
        let mut others = [holder, occupant].into_iter().flatten();
        if others.any(|other| other != *node && !trust.is_revoked(&other)) {
            return Err(IssueError::Taken(locality.clone()));
        }
        Ok(())
    }

    /// Writes who used the token, and then who has the place. A stop in between repeats both with the host's next
    /// request.
    fn record_use(&self, key: Vec<u8>, token: &JoinToken, credential: &Credential) -> Result<(), KvError> {
        let used = TokenUse { locality: credential.locality.clone(), until: token.not_after };
        self.tokens.put(key, encode(&used))?;
        self.hold(credential)?;
        self.database.sync()
    }

    /// Notes who has a place.
    fn hold(&self, credential: &Credential) -> Result<(), KvError> {
        let holder = Holder { node: credential.node, until: credential.not_after };
        self.places.put(credential.locality.to_string(), encode(&holder))
    }

    /// Whether there is a key to sign with.
    pub(crate) fn has_key(&self) -> bool {
        self.keys.is_some()
    }

    /// Issues a credential with the claims of an admitted one and a later end.
    pub(crate) fn renew(&self, trust: &Trust, admitted: &Admitted, now: u64) -> Result<Vec<u8>, IssueError> {
        let Some(keys) = &self.keys else { return Err(IssueError::NoKey) };
        trust.check_again(admitted, now).map_err(IssueError::NotAdmitted)?;
        let former: &Credential = admitted;
        let life = former.not_after.saturating_sub(former.not_before);
        if former.not_after.saturating_sub(now) > life / 2 {
            return Err(IssueError::NotDue);
        }
        let longest = trust.issuer(&keys.node()).map_or(life, |issuer| issuer.valid_max_s);
        let not_before = now.saturating_sub(CLOCK_SKEW_MAX_S);
        let not_after = not_before.saturating_add(life.min(longest));
        let credential = Credential { not_before, not_after, ..former.clone() };
        if not_after <= former.not_after {
            return Err(IssueError::NotDue);
        }
        trust.check_mandate(keys.node(), &credential, now).map_err(IssueError::Mandate)?;
        self.hold(&credential)?;
        Ok(Envelope::seal(&credential, keys).to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables;
    use shoal_proto::trust::{Issuer, JoinClaim, Revocation, Role, TokenSecret, TrustDocument};

    const NOW: u64 = 1_800_000_000;

    fn keys(number: u8) -> Keypair {
        Keypair::from_seed([number; 32])
    }

    /// Root 1, and an issuer 2 for peers of `r/s`.
    fn trust(change: impl FnOnce(&mut TrustDocument)) -> Trust {
        let mut document = TrustDocument::first(keys(1).node(), []);
        document.issuers = vec![Issuer {
            key: keys(2).node(),
            roles: vec![Role::Peer],
            localities: vec!["r/s".into()],
            valid_max_s: 100_000,
            not_after: NOW + 1_000_000,
        }];
        change(&mut document);
        Trust::open(&Envelope::seal(&document, &keys(1)).to_bytes(), None).unwrap()
    }

    fn token(trust: &Trust, secret: u8, signer: u8, change: impl FnOnce(&mut JoinToken)) -> TokenSecret {
        let mut token = JoinToken {
            cluster: trust.cluster(),
            key: NodeId([0; 32]),
            role: Role::Peer,
            place: "r/s/k".into(),
            uses: 2,
            not_after: NOW + 60,
            valid_s: 10_000,
            labels: [("gpu".to_string(), "yes".to_string())].into(),
            weight_max: 7,
            addresses: vec!["10.0.0.0/8".parse().unwrap()],
            trust_version: 1,
        };
        change(&mut token);
        TokenSecret::seal(&token, keys(secret), &keys(signer))
    }

    struct Bench {
        issuing: Issuing,
        trust: Trust,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new(trust: Trust) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let database = tables::open(dir.path()).unwrap();
            Self { issuing: Issuing::open(&database, Some(keys(2)), NOW).unwrap(), trust, _dir: dir }
        }

        fn ask(
            &mut self,
            token: &TokenSecret,
            host: u8,
            name: Option<&str>,
            now: u64,
        ) -> Result<Credential, IssueError> {
            let node = keys(host).node();
            let claim = JoinClaim { cluster: self.trust.cluster(), node, name: name.map(str::to_string) };
            let (token, claim) = (token.envelope().to_bytes(), token.claim(&claim));
            let asked = Asked { trust: &self.trust, region: "r", node, now };
            let bytes = self.issuing.enrol(&asked, &token, &claim, |_| None)?;
            Ok((*self.trust.admit(&bytes, node, now).unwrap()).clone())
        }
    }

    /// Why the host got no credential.
    fn why(asked: Result<Credential, IssueError>) -> String {
        let error = asked.unwrap_err();
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    }

    #[test]
    fn a_credential_says_what_the_token_says() {
        let mut bench = Bench::new(trust(|_| {}));
        let token = token(&bench.trust, 9, 2, |_| {});
        let credential = bench.ask(&token, 20, Some("h1"), NOW).unwrap();
        assert_eq!(credential.locality.to_string(), "r/s/k/h1");
        assert_eq!((credential.weight_max, credential.not_after), (7, NOW + 10_000));
        assert_eq!(credential.labels["gpu"], "yes");
        assert_eq!(credential.addresses, ["10.0.0.0/8".parse().unwrap()]);
        let named = bench.ask(&token, 21, None, NOW).unwrap();
        assert_eq!(named.locality.host, format!("host-{}", keys(21).node().short()));
    }

    #[test]
    fn uses_are_counted_once_for_each_key_and_survive_a_restart() {
        let mut bench = Bench::new(trust(|_| {}));
        let token = token(&bench.trust, 9, 2, |_| {});
        for _ in 0..3 {
            assert_eq!(bench.ask(&token, 20, Some("h1"), NOW).unwrap().locality.host, "h1");
            assert_eq!(bench.ask(&token, 20, None, NOW).unwrap().locality.host, "h1", "the name stays");
            assert!(why(bench.ask(&token, 20, Some("h2"), NOW)).contains("not for a host named `h2`"));
        }
        bench.ask(&token, 21, Some("h2"), NOW).unwrap();
        for _ in 0..2 {
            assert!(why(bench.ask(&token, 22, Some("h3"), NOW)).contains("used by 2 hosts"));
            let database = bench.issuing.database.clone();
            bench.issuing = Issuing::open(&database, Some(keys(2)), NOW).unwrap();
        }
        assert!(bench.ask(&token, 20, None, NOW).is_ok());
        assert!(why(bench.ask(&token, 20, None, NOW + 60)).contains("the token ended 0 s ago"));
        // A start with a clock that is ahead forgets nothing.
        let database = bench.issuing.database.clone();
        bench.issuing = Issuing::open(&database, Some(keys(2)), NOW + KEPT_S).unwrap();
        assert!(why(bench.ask(&token, 22, Some("h3"), NOW)).contains("used by 2 hosts"));
        let ends = NOW + 60 + KEPT_S;
        bench.issuing = Issuing::open(&database, None, ends).unwrap();
        assert_eq!(bench.issuing.tokens.scan([]).unwrap().len(), 0, "rows go long after the end of their token");
        assert_eq!(bench.issuing.places.scan([]).unwrap().len(), 2);
        assert!(why(bench.ask(&token, 20, None, NOW)).contains("issuer_key"));
    }

    #[test]
    fn a_place_has_one_key() {
        let mut bench = Bench::new(trust(|_| {}));
        let (first, second) = (token(&bench.trust, 9, 2, |_| {}), token(&bench.trust, 10, 1, |_| {}));
        bench.ask(&first, 20, Some("h1"), NOW).unwrap();
        for token in [&first, &second] {
            assert!(why(bench.ask(token, 21, Some("h1"), NOW)).contains("r/s/k/h1 is taken"));
        }
        bench.ask(&second, 20, Some("h1"), NOW).unwrap();
        // A place that the roster knows is taken too.
        let node = keys(22).node();
        let claim = JoinClaim { cluster: bench.trust.cluster(), node, name: Some("h5".into()) };
        let asked = Asked { trust: &bench.trust, region: "r", node, now: NOW };
        let (bytes, claim) = (second.envelope().to_bytes(), second.claim(&claim));
        let taken = bench.issuing.enrol(&asked, &bytes, &claim, |_| Some(NodeId([1; 32])));
        assert!(matches!(taken, Err(IssueError::Taken(_))));
        assert!(bench.issuing.enrol(&asked, &bytes, &claim, |_| Some(node)).is_ok());
        // The place is free once its holder is revoked.
        bench.trust = trust(|document| {
            document.revoked = vec![Revocation { node: keys(20).node(), until: u64::MAX }];
        });
        assert!(why(bench.ask(&first, 20, Some("h1"), NOW)).contains("revoked"));
        assert_eq!(bench.ask(&first, 21, Some("h1"), NOW).unwrap().locality.host, "h1");
    }

    #[test]
    fn tokens_beyond_a_mandate_yield_nothing() {
        let mut bench = Bench::new(trust(|_| {}));
        type Change = fn(&mut JoinToken);
        let cases: [(u8, Change, &str); 7] = [
            (3, |_| {}, "not trusted"),
            (2, |it| it.role = Role::Seeder, "excludes the role"),
            (1, |it| it.role = Role::Seeder, "excludes the role"),
            (2, |it| it.place = "r/t/k".into(), "excludes the locality"),
            (2, |it| it.place = "q/s/k".into(), "excludes the locality"),
            (2, |it| it.valid_s = 200_000, "excludes the length of validity"),
            (2, |it| it.cluster.0 = [1; 32], "another cluster"),
        ];
        for (number, (signer, change, expected)) in cases.into_iter().enumerate() {
            let token = token(&bench.trust, 9, signer, change);
            let error = why(bench.ask(&token, 20, Some("h1"), NOW));
            assert!(error.contains(expected), "case {number}: {error}");
        }
        assert!(bench.issuing.uses.is_empty());
        // A token ends with the mandate of its signer.
        let token = token(&bench.trust, 9, 2, |_| {});
        bench.trust = trust(|document| document.issuers[0].not_after = NOW);
        assert!(why(bench.ask(&token, 20, Some("h1"), NOW)).contains("excludes the present time"));
    }

    #[test]
    fn renewals_keep_the_claims_and_come_late_enough() {
        let mut bench = Bench::new(trust(|_| {}));
        let token = token(&bench.trust, 9, 2, |_| {});
        let former = bench.ask(&token, 20, Some("h1"), NOW).unwrap();
        let admitted = |bench: &Bench, credential: &Credential, now| {
            let bytes = Envelope::seal(credential, &keys(2)).to_bytes();
            bench.trust.admit(&bytes, keys(20).node(), now)
        };
        let first = admitted(&bench, &former, NOW).unwrap();
        assert!(matches!(bench.issuing.renew(&bench.trust, &first, NOW), Err(IssueError::NotDue)));
        let late = former.not_after - 1000;
        let renewed = bench.issuing.renew(&bench.trust, &first, late).unwrap();
        let renewed = bench.trust.admit(&renewed, keys(20).node(), late).unwrap();
        let expected = Credential { not_before: late - 300, not_after: late + 10_000, ..former.clone() };
        assert_eq!(*renewed, expected);
        // Neither an ended credential nor a revoked host's is renewed.
        let over = bench.issuing.renew(&bench.trust, &first, former.not_after);
        assert!(matches!(over, Err(IssueError::NotAdmitted(TrustError::Expired { .. }))));
        let revoking = trust(|document| {
            document.revoked = vec![Revocation { node: keys(20).node(), until: u64::MAX }];
        });
        let revoked = bench.issuing.renew(&revoking, &first, late);
        assert!(matches!(revoked, Err(IssueError::NotAdmitted(TrustError::Revoked(_)))));
        // The root may have issued for longer than the issuer may.
        let long = Credential { not_after: former.not_before + 1_000_000, ..former };
        let bytes = Envelope::seal(&long, &keys(1)).to_bytes();
        let long = bench.trust.admit(&bytes, keys(20).node(), NOW).unwrap();
        let renewed = bench.issuing.renew(&bench.trust, &long, long.not_after - 1000).unwrap();
        let renewed = bench.trust.admit(&renewed, keys(20).node(), long.not_after - 1000).unwrap();
        assert_eq!(renewed.not_after - renewed.not_before, 100_000);
    }
}
