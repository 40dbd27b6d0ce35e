//! `shoal cluster tls`: certificates for the HTTP APIs, from an authority that the cluster's root key makes.
//!
//! Invariant: the authority's key is the root key, so no second secret has to be kept offline.

use super::cluster_files::replace;
use super::output;
use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519,
};
use serde_json::json;
use shoal_net::identity::load_key;
use shoal_proto::trust::{Keypair, cluster_of};
use shoal_service::units::Span;
use std::fs;
use std::path::PathBuf;
use time::OffsetDateTime;

/// The DER form of an Ed25519 private key before its 32 secret bytes (RFC 8410, section 7).
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Create the certificate of a role's HTTP API
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster tls --dir cluster --name hub.example --name 192.0.2.7 --out hub

The command writes tls.crt and tls.key. Name them in http_access.tls of the role.
The file ca.pem is the authority. Name it in hub_ca of trackers, and with --ca or SHOAL_CA in commands.")]
pub(crate) struct Tls {
    /// Folder of the cluster, which contains root.key
    #[arg(long)]
    dir: PathBuf,
    /// Host name or address by which clients reach the API. Repeat the option for more
    #[arg(long = "name", required = true)]
    names: Vec<String>,
    /// Folder for tls.crt, tls.key and ca.pem. The command creates the folder
    #[arg(long)]
    out: PathBuf,
    /// Time for which the certificate is valid
    #[arg(long, default_value = "365d")]
    valid: Span,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Tls) -> anyhow::Result<()> {
    let root = load_key(&args.dir.join("root.key"))?;
    let now = OffsetDateTime::now_utc();
    let (authority, signer) = authority(&root)?;
    let mut params = CertificateParams::new(args.names.clone()).context("a name is not a host name or an address")?;
    params.distinguished_name.push(DnType::CommonName, args.names[0].clone());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Clocks of hosts differ by seconds, so the certificate is valid from five minutes ago.
    params.not_before = now - time::Duration::minutes(5);
    params.not_after = now + args.valid.0;
    let not_after = params.not_after.unix_timestamp();
    let key = KeyPair::generate().context("the operating system returned no random bytes")?;
    let certificate = params.signed_by(&key, &authority, &signer).context("cannot sign the certificate")?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    replace(&args.out.join("tls.key"), key.serialize_pem().as_bytes(), 0o600)?;
    replace(&args.out.join("tls.crt"), certificate.pem().as_bytes(), 0o644)?;
    replace(&args.out.join("ca.pem"), authority.pem().as_bytes(), 0o644)?;
    if args.json {
        output::json(&json!({ "names": args.names, "not_after": not_after, "out": args.out }))?;
    } else {
        output::line(&format!("{}: tls.crt, tls.key and ca.pem in {}", args.names.join(", "), args.out.display()));
    }
    Ok(())
}

/// Returns the certificate of the authority, and the key that signs for it. Both come from the root key alone.
fn authority(root: &Keypair) -> anyhow::Result<(rcgen::Certificate, KeyPair)> {
    let der = [&ED25519_PKCS8[..], &root.seed()].concat();
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &PKCS_ED25519)
        .context("the root key cannot sign certificates")?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Shoal cluster {}", cluster_of(&root.node()).short()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // The root key has no end, and neither has its certificate.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let certificate = params.self_signed(&key).context("cannot sign the authority's certificate")?;
    Ok((certificate, key))
}
