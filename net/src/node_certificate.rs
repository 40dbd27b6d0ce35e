//! X.509 client certificates of nodes of a Kubernetes cluster, as CloudCore of KubeEdge signs them.
//!
//! Invariant: a name counts only from a valid client certificate of the configured certificate authority. The key of
//! the certificate must have signed the host's key within the last minutes.

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use shoal_proto::ids::NodeId;
use shoal_proto::limits;
use std::path::{Path, PathBuf};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// Begins the common name of a node.
const NODE_PREFIX: &str = "system:node:";
/// The DER form of the object identifier 2.5.4.3, the common name.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
/// The forms of signatures that a host makes, the preferred one first.
const SCHEMES: [SignatureScheme; 7] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Why a certificate does not count, or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The file has no certificate, or too many.
    #[error("{} has no certificate, or more than {}", .0.display(), limits::NODE_CERTIFICATES_MAX)]
    Count(PathBuf),
    /// The private key is of no supported kind.
    #[error("the private key cannot sign")]
    Key(#[source] rustls::Error),
    /// The certificate is not one that the authority signed for clients and that is valid now.
    #[error("the certificate is not a valid client certificate of the configured certificate authority: {0}")]
    Invalid(#[from] webpki::Error),
    /// The subject has no common name of a node, or several.
    #[error("the certificate names no node: its common name must be `{NODE_PREFIX}NAME`")]
    NoNode,
    /// The signature is of another time.
    #[error(
        "the request is {0} s away from the tracker's clock, and at most {max} s count: set the host's clock",
        max = limits::CLOCK_SKEW_MAX_S
    )]
    Time(u64),
    /// The signature does not match.
    #[error("the request is not signed with the certificate's key")]
    Signature,
}

/// What a host shows of its certificate.
#[derive(Clone, Debug)]
pub struct Proof {
    /// When the host signed, Unix seconds.
    pub at: u64,
    /// The certificate and the intermediate ones, DER, the host's own first.
    pub chain: Vec<Vec<u8>>,
    /// The TLS number of the signature's form.
    pub scheme: u16,
    /// The signature of [`signed_bytes`].
    pub signature: Vec<u8>,
}

/// Returns what the key of the certificate signs. The connection on which the proof arrives proves the host's key, so a
/// proof is of no use to another host.
fn signed_bytes(tracker: &NodeId, node: &NodeId, at: u64) -> Vec<u8> {
    [b"shoal node certificate ".as_slice(), tracker.as_bytes(), node.as_bytes(), &at.to_be_bytes()].concat()
}

/// A host's certificate with its key.
#[derive(Debug)]
pub struct NodeCertificate {
    chain: Vec<Vec<u8>>,
    key: PrivateKeyDer<'static>,
}

impl NodeCertificate {
    /// Reads the PEM files of the certificate and its key.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read, or has no certificate or key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let chain = read_certificates(certificate)?.into_iter().map(|one| one.to_vec()).collect();
        let fault = |source| CertificateError::Read { path: key.to_path_buf(), source };
        Ok(Self { chain, key: PrivateKeyDer::from_pem_file(key).map_err(fault)? })
    }

    /// Signs that the key `node` is this host's, for one tracker. `now` is in Unix seconds.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Key`] if the key is of no supported kind.
    pub fn prove(&self, tracker: &NodeId, node: &NodeId, now: u64) -> Result<Proof, CertificateError> {
        let unsupported = || CertificateError::Key(rustls::Error::General("no supported form of signature".into()));
        let key = any_supported_type(&self.key).map_err(CertificateError::Key)?;
        let signer = key.choose_scheme(&SCHEMES).ok_or_else(unsupported)?;
        let signature = signer.sign(&signed_bytes(tracker, node, now)).map_err(CertificateError::Key)?;
        Ok(Proof { at: now, chain: self.chain.clone(), scheme: signer.scheme().into(), signature })
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let fault = |source| CertificateError::Read { path: path.to_path_buf(), source };
    let all = CertificateDer::pem_file_iter(path).map_err(fault)?.collect::<Result<Vec<_>, _>>().map_err(fault)?;
    if all.is_empty() || all.len() > limits::NODE_CERTIFICATES_MAX {
        return Err(CertificateError::Count(path.to_path_buf()));
    }
    Ok(all)
}

/// The authority of the nodes.
pub struct NodeAuthority {
    anchors: Vec<CertificateDer<'static>>,
    tracker: NodeId,
}

impl NodeAuthority {
    /// Reads the PEM file of the authority. `tracker` is the key of the tracker.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read or has no certificate of an authority.
    pub fn load(path: &Path, tracker: NodeId) -> Result<Self, CertificateError> {
        let anchors = read_certificates(path)?;
        for anchor in &anchors {
            anchor_from_trusted_cert(anchor)?;
        }
        Ok(Self { anchors, tracker })
    }

    /// Returns the name of the node that the proof is of.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] with the first check that fails: time of the proof, signature of the authority, time of the
    /// certificate, use, name, signature of the proof.
    pub fn check(&self, proof: &Proof, node: &NodeId, now: u64) -> Result<String, CertificateError> {
        let away = proof.at.abs_diff(now);
        if away > limits::CLOCK_SKEW_MAX_S {
            return Err(CertificateError::Time(away));
        }
        let chain: Vec<CertificateDer<'_>> =
            proof.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let Some((first, intermediates)) = chain.split_first() else { return Err(CertificateError::NoNode) };
        let certificate = EndEntityCert::try_from(first)?;
        let anchors = self.anchors.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
        let algorithms = default_provider().signature_verification_algorithms;
        certificate.verify_for_usage(
            algorithms.all,
            &anchors,
            intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            KeyUsage::client_auth(),
            None,
            None,
        )?;
        let name = node_name(certificate.subject()).ok_or(CertificateError::NoNode)?;
        let scheme = SignatureScheme::from(proof.scheme);
        let fitting = algorithms.mapping.iter().find(|(known, _)| *known == scheme).map_or(&[][..], |(_, all)| all);
        let signed = signed_bytes(&self.tracker, node, proof.at);
        let is_signed = fitting.iter().any(|one| certificate.verify_signature(*one, &signed, &proof.signature).is_ok());
        if is_signed { Ok(name) } else { Err(CertificateError::Signature) }
    }
}

/// Returns the node that a subject names. `subject` is the DER form of the names, without their outer sequence.
fn node_name(mut subject: &[u8]) -> Option<String> {
    let mut found = None;
    while !subject.is_empty() {
        // A set of pairs. Each pair is a sequence of an identifier and a text.
        let (mut set, rest) = value(subject, 0x31)?;
        subject = rest;
        while !set.is_empty() {
            let (pair, rest) = value(set, 0x30)?;
            set = rest;
            if let Some(text) = pair.strip_prefix(&COMMON_NAME[..])
                && found.replace(text_of(text)?).is_some()
            {
                return None; // two common names
            }
        }
    }
    let name = found?.strip_prefix(NODE_PREFIX)?.to_string();
    (!name.is_empty()).then_some(name)
}

/// Returns the contents of a DER value with this tag, and the bytes behind it.
fn value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (len, rest) = rest.split_first()?;
    let (len, rest) = match len {
        0..=0x7f => (usize::from(*len), rest),
        0x81 => rest.split_first().map(|(len, rest)| (usize::from(*len), rest))?,
        0x82 => rest.split_first_chunk::<2>().map(|(len, rest)| (usize::from(u16::from_be_bytes(*len)), rest))?,
        _ => return None,
    };
    (*found == tag).then(|| rest.split_at_checked(len))?
}

/// Returns a text of the kinds that subjects have: UTF8String, PrintableString or IA5String.
fn text_of(bytes: &[u8]) -> Option<&str> {
    let (text, rest) = [0x0c, 0x13, 0x16].iter().find_map(|tag| value(bytes, *tag))?;
    rest.is_empty().then(|| std::str::from_utf8(text).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(identifier: u8, tag: u8, text: &str) -> Vec<u8> {
        let text = [&[tag, text.len() as u8], text.as_bytes()].concat();
        let pair = [&[0x06, 0x03, 0x55, 0x04, identifier][..], &text].concat();
        let pair = [&[0x30, pair.len() as u8][..], &pair].concat();
        [&[0x31, pair.len() as u8][..], &pair].concat()
    }

    #[test]
    fn a_subject_has_one_common_name_of_a_node() {
        let organisation = pair(10, 0x13, "system:nodes");
        for tag in [0x0c, 0x13, 0x16] {
            let subject = [organisation.clone(), pair(3, tag, "system:node:edge-1")].concat();
            assert_eq!(node_name(&subject).as_deref(), Some("edge-1"));
            for cut in 0..subject.len() {
                assert_ne!(node_name(&subject[..cut]).as_deref(), Some("edge-1"), "cut at {cut}");
            }
        }
        let refused = [
            organisation.clone(),
            pair(3, 0x0c, "system:node:"),
            pair(3, 0x0c, "admin"),
            pair(3, 0x0c, "xsystem:node:edge-1"),
            pair(3, 0x1e, "system:node:edge-1"),
            pair(10, 0x0c, "system:node:edge-1"),
            [pair(3, 0x0c, "system:node:a"), pair(3, 0x0c, "system:node:b")].concat(),
            [pair(3, 0x0c, "system:node:a"), pair(3, 0x0c, "b")].concat(),
        ];
        for subject in refused {
            assert_eq!(node_name(&subject), None, "{subject:02x?}");
        }
    }
}
