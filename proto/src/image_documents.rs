//! The documents of an image, OCI and Docker: indexes, manifests and configurations.
//!
//! Invariant: a row of an index is read when it is chosen. A row that is not chosen may contain anything.

use crate::go_json::{FieldError, GoValue};
use crate::image::{Digest, ParseDigestError};
use crate::platform::{Platform, PlatformChoice, StatedPlatform};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The blob of an image that says which manifests refer to it at its registry. Its bytes are [`ReferrerLists`].
pub const REFERRER_LISTS: &str = "application/vnd.shoal.referrers.v1+json";

/// Why a document cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DocumentFault {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
    #[error("the manifest names no configuration")]
    NoConfiguration,
    /// A reader of one kind and a reader of the other would see different images.
    #[error("the document is an index and a manifest at the same time")]
    TwoKinds,
}

/// How a document refers to another blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The blob's media type. Empty if the document gives none.
    pub media_type: String,
    #[allow(missing_docs, reason = "the type says it")]
    pub digest: Digest,
    /// Length of the blob, bytes.
    pub size: u64,
    /// What the document notes, for example the name of an image in an OCI layout.
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Returns the descriptor of a blob without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_string(), digest, size, annotations: BTreeMap::new() }
    }

    /// Reads a descriptor.
    ///
    /// # Errors
    /// Fails if a field has another type than the format says, or the digest is not SHA-256.
    pub fn read(row: &GoValue) -> Result<Self, DocumentFault> {
        let row = row.as_map_or_null("descriptor")?;
        let digest = row.text("digest")?.parse()?;
        let annotations = annotations(row)?;
        Ok(Self { media_type: row.text("mediaType")?.to_string(), digest, size: row.number("size")?, annotations })
    }
}

/// Reads the annotations of a document or a row. A text that is `null` is empty.
fn annotations(of: &GoValue) -> Result<BTreeMap<String, String>, FieldError> {
    let rows = of.map("annotations")?.iter();
    rows.map(|(key, text)| Ok((key.clone(), text.as_text(key)?.to_string()))).collect()
}

/// Returns the digest of a document's `subject`, if it has one that can be read.
fn subject(document: &GoValue) -> Option<Digest> {
    document.get("subject").text("digest").ok()?.parse().ok()
}

/// An index of images, also the one of an OCI layout.
#[derive(Clone, Debug)]
pub struct IndexDocument {
    rows: Vec<GoValue>,
    /// The manifest to which the index refers, if it is an artifact.
    pub subject: Option<Digest>,
}

impl IndexDocument {
    /// Reads an index.
    ///
    /// # Errors
    /// Fails if the document is not an index.
    pub fn read(document: &GoValue) -> Result<Self, DocumentFault> {
        let document = document.as_map_or_null("index")?;
        if !matches!(document.get("layers"), GoValue::Null) || !matches!(document.get("config"), GoValue::Null) {
            return Err(DocumentFault::TwoKinds);
        }
        Ok(Self { rows: document.list("manifests")?.to_vec(), subject: subject(document) })
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the index has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns what the rows say of their platforms.
    pub fn platforms(&self) -> Vec<StatedPlatform> {
        self.rows.iter().map(StatedPlatform::of).collect()
    }

    /// Returns the rows for a platform.
    pub fn choose(&self, wanted: &Platform) -> PlatformChoice {
        PlatformChoice::new(wanted, &self.platforms())
    }

    /// Returns what a row notes under a key, also if the row cannot be read otherwise. Returns `None` for no text.
    pub fn annotation(&self, place: usize, key: &str) -> Option<&str> {
        let text = self.rows.get(place)?.get("annotations").text(key).ok()?;
        (!text.is_empty()).then_some(text)
    }

    /// Reads a row.
    ///
    /// # Errors
    /// Fails if the row cannot be read.
    pub fn row(&self, place: usize) -> Result<Descriptor, DocumentFault> {
        Descriptor::read(self.rows.get(place).unwrap_or(&GoValue::Null))
    }
}

/// A manifest of one image or artifact.
#[derive(Clone, Debug)]
pub struct ManifestDocument {
    #[allow(missing_docs, reason = "the type says it")]
    pub config: Descriptor,
    /// The lowest layer is the first.
    pub layers: Vec<Descriptor>,
    /// The manifest to which this one refers, for example the one that it signs.
    pub subject: Option<Digest>,
}

impl ManifestDocument {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Fails if the document is not a manifest, or one of its rows cannot be read.
    pub fn read(document: &GoValue) -> Result<Self, DocumentFault> {
        let document = document.as_map_or_null("manifest")?;
        if !document.list("manifests")?.is_empty() {
            return Err(DocumentFault::TwoKinds);
        }
        if matches!(document.get("config"), GoValue::Null) {
            return Err(DocumentFault::NoConfiguration);
        }
        let config = Descriptor::read(document.get("config"))?;
        let layers = document.list("layers")?.iter().map(Descriptor::read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { config, layers, subject: subject(document) })
    }
}

/// The configuration of an image.
#[derive(Clone, Debug)]
pub struct ConfigDocument {
    /// The platform of the image.
    pub platform: Platform,
    /// The digests of the uncompressed layers, the lowest layer first.
    pub diff_ids: Vec<Digest>,
}

impl ConfigDocument {
    /// Reads a configuration. One without layers has no digests.
    ///
    /// # Errors
    /// Fails if a field has another type than the format says, or a digest is not SHA-256.
    pub fn read(document: &GoValue) -> Result<Self, DocumentFault> {
        let document = document.as_map_or_null("configuration")?;
        let rootfs = document.get("rootfs").as_map_or_null("rootfs")?;
        let diff_ids = rootfs.texts("diff_ids")?.into_iter().map(str::parse).collect::<Result<Vec<Digest>, _>>()?;
        Ok(Self { platform: Platform::read(document)?, diff_ids })
    }
}

/// What a manifest or index is to those that look for what refers to another manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// The manifest that it refers to.
    pub subject: Digest,
    /// Its own type, else the type of its configuration, as the distribution specification says. May be empty.
    pub artifact_type: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Referrer {
    /// Reads a manifest or index. Returns `None` if it refers to no manifest.
    pub fn read(document: &GoValue) -> Option<Self> {
        let subject = subject(document)?;
        let own = document.text("artifactType").ok()?;
        let artifact_type = if own.is_empty() { document.get("config").text("mediaType").ok()? } else { own };
        Some(Self { subject, artifact_type: artifact_type.to_string(), annotations: annotations(document).ok()? })
    }
}

/// What a registry answered when it was asked for referrers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferrerLists {
    /// One list for each manifest that the registry was asked for.
    pub lists: Vec<ReferrerList>,
}

/// The referrers of one manifest at its registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferrerList {
    /// The manifest.
    pub subject: Digest,
    /// All referrers, or `None` if the registry gave no whole list.
    pub manifests: Option<Vec<Digest>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> GoValue {
        serde_json::from_str(text).unwrap()
    }

    fn digest(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    fn row(byte: u8) -> String {
        format!(r#"{{"mediaType":"a/b","digest":"{}","size":3}}"#, digest(byte))
    }

    #[test]
    fn what_go_leaves_out_or_writes_as_null_is_read() {
        let row = row(1);
        for layers in ["", r#","layers":null"#, r#","layers":[]"#] {
            let manifest = value(&format!(r#"{{"config":{row}{layers},"annotations":null,"subject":null,"new":[1]}}"#));
            let manifest = ManifestDocument::read(&manifest).unwrap();
            assert!(manifest.layers.is_empty() && manifest.subject.is_none() && manifest.config.digest == digest(1));
        }
        for rootfs in ["", r#""rootfs":null"#, r#""rootfs":{}"#, r#""rootfs":{"type":"layers","diff_ids":null}"#] {
            assert!(ConfigDocument::read(&value(&format!("{{{rootfs}}}"))).unwrap().diff_ids.is_empty(), "{rootfs}");
        }
        for manifests in ["", r#""manifests":null"#] {
            assert!(IndexDocument::read(&value(&format!("{{{manifests}}}"))).unwrap().is_empty());
        }
        let noted = value(&format!(r#"{{"digest":"{}","annotations":{{"a":null,"b":"c"}}}}"#, digest(1)));
        let annotations = Descriptor::read(&noted).unwrap().annotations;
        assert_eq!(annotations, BTreeMap::from([("a".to_string(), String::new()), ("b".to_string(), "c".to_string())]));
    }

    #[test]
    fn rows_that_are_not_chosen_do_not_matter() {
        let platform = |arch: &str| format!(r#""platform":{{"os":"linux","architecture":"{arch}"}}"#);
        let good = format!(r#"{{"mediaType":"a/b","digest":"{}","size":3,{}}}"#, digest(7), platform("amd64"));
        let sha512 = format!(r#"{{"digest":"sha512:{}",{}}}"#, "0".repeat(128), platform("arm64"));
        let index = value(&format!(r#"{{"manifests":[null,7,{{"size":"big"}},{sha512},{good}]}}"#));
        let index = IndexDocument::read(&index).unwrap();
        let chosen = index.choose(&"linux/amd64".parse().unwrap()).candidates();
        assert_eq!((index.len(), chosen.clone()), (5, vec![4]));
        assert_eq!(index.row(chosen[0]).unwrap().digest, digest(7));
        let arm = index.choose(&"linux/arm64".parse().unwrap()).candidates();
        let error = index.row(arm[0]).unwrap_err().to_string();
        assert!(error.contains("sha512:0") && error.contains("SHA-256"), "{error}");
        assert!(index.row(9).is_err());
    }

    #[test]
    fn documents_of_two_kinds_are_refused() {
        let both = value(&format!(r#"{{"config":{0},"layers":[],"manifests":[{0}]}}"#, row(1)));
        assert_eq!(ManifestDocument::read(&both).unwrap_err(), DocumentFault::TwoKinds);
        assert_eq!(IndexDocument::read(&both).unwrap_err(), DocumentFault::TwoKinds);
        assert_eq!(ManifestDocument::read(&value("{}")).unwrap_err(), DocumentFault::NoConfiguration);
        for bad in ["[]", "7", "\"x\""] {
            assert!(IndexDocument::read(&value(bad)).is_err() && ManifestDocument::read(&value(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn referrers_are_found_by_their_subject() {
        let config = r#""config":{"mediaType":"a/config"}"#;
        let with = |more: &str| Referrer::read(&value(&format!(r#"{{"subject":{},{config}{more}}}"#, row(9))));
        assert_eq!(with("").unwrap().artifact_type, "a/config");
        let own = with(r#","artifactType":"a/own","annotations":{"k":"v"}"#).unwrap();
        assert_eq!((own.subject, &*own.artifact_type, own.annotations.len()), (digest(9), "a/own", 1));
        assert!(Referrer::read(&value(&format!("{{{config}}}"))).is_none());
        let lists = ReferrerLists {
            lists: vec![
                ReferrerList { subject: digest(1), manifests: Some(vec![digest(2)]) },
                ReferrerList { subject: digest(3), manifests: None },
            ],
        };
        let text = serde_json::to_string(&lists).unwrap();
        assert_eq!(serde_json::from_str::<ReferrerLists>(&text).unwrap(), lists);
    }
}
