//! Blobs, manifests and indexes as tools write them: in a layout, in an archive, or behind a registry.
//!
//! Invariant: the same parts always make the same bytes.

use serde_json::{Value, json};
use shoal_testkit::fake_registry::{FakeRegistry, Received, Reply};
use shoal_testkit::oci::{sha256, tar};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a registry or a layout contains.
#[derive(Clone, Default)]
pub(crate) struct Shelf {
    blobs: BTreeMap<String, Vec<u8>>,
    types: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    /// Rows by the digest of their subject.
    referrers: BTreeMap<String, Vec<Value>>,
    pub(crate) has_referrers_api: bool,
}

/// The digest in a descriptor.
pub(crate) fn digest(row: &Value) -> &str {
    row["digest"].as_str().unwrap()
}

/// A descriptor with a platform.
pub(crate) fn on(row: &Value, architecture: &str, variant: &str) -> Value {
    let mut row = row.clone();
    row["platform"] = json!({ "os": "linux", "architecture": architecture });
    if !variant.is_empty() {
        row["platform"]["variant"] = variant.into();
    }
    row
}

impl Shelf {
    /// A registry that has the API of referrers.
    pub(crate) fn with_referrers_api() -> Self {
        Self { has_referrers_api: true, ..Self::default() }
    }

    /// Adds bytes; returns their descriptor.
    pub(crate) fn put(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        self.blobs.insert(digest.clone(), bytes.to_vec());
        self.types.insert(digest.clone(), media_type.to_string());
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    pub(crate) fn document(&mut self, media_type: &str, document: &Value) -> Value {
        self.put(media_type, document.to_string().as_bytes())
    }

    /// Adds an image with one file that says what it is.
    pub(crate) fn image(&mut self, what: &str, architecture: &str) -> Value {
        let archive = tar(&[("what", what.as_bytes())]);
        let rootfs = json!({ "type": "layers", "diff_ids": [sha256(&archive)] });
        let config = json!({ "architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs });
        let (config, layer) = (self.document(OCI_CONFIG, &config), self.put(LAYER, &archive));
        self.manifest(json!({ "config": config, "layers": [layer] }))
    }

    /// Adds a manifest with these fields.
    pub(crate) fn manifest(&mut self, mut fields: Value) -> Value {
        fields["schemaVersion"] = 2.into();
        fields["mediaType"] = OCI_MANIFEST.into();
        self.document(OCI_MANIFEST, &fields)
    }

    pub(crate) fn index(&mut self, rows: &[Value]) -> Value {
        self.document(OCI_INDEX, &json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows }))
    }

    /// Adds an artifact that refers to a manifest.
    pub(crate) fn artifact(&mut self, subject: &Value, kind: &str, text: &str) -> Value {
        let config = self.put("application/vnd.oci.empty.v1+json", b"{}");
        let blob = self.put(kind, text.as_bytes());
        let subject = json!({ "mediaType": OCI_MANIFEST, "digest": subject["digest"], "size": subject["size"] });
        let fields = json!({ "artifactType": kind, "config": config, "layers": [blob], "subject": subject });
        let mut row = self.manifest(fields);
        row["artifactType"] = kind.into();
        self.referrers.entry(digest(&subject).to_string()).or_default().push(row.clone());
        row
    }

    pub(crate) fn tag(&mut self, tag: &str, row: &Value) {
        self.tags.insert(tag.to_string(), digest(row).to_string());
    }

    /// Removes a blob that a registry need not have.
    pub(crate) fn remove(&mut self, row: &Value) {
        self.blobs.remove(digest(row));
    }

    pub(crate) fn bytes(&self, row: &Value) -> &[u8] {
        &self.blobs[digest(row)]
    }

    /// Answers as a registry with one repository does, whatever it is called.
    pub(crate) fn answer(&self, seen: &Received) -> Reply {
        let path = seen.path.split('?').next().unwrap();
        let mut parts = path.rsplit('/');
        let (last, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if kind == "referrers" && self.has_referrers_api {
            let rows = self.referrers.get(last).cloned().unwrap_or_default();
            let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows });
            return Reply::new(200, list.to_string()).with("content-type", OCI_INDEX);
        }
        let wanted = self.tags.get(last).map_or(last, String::as_str);
        match (kind, self.blobs.get(wanted)) {
            ("manifests", Some(bytes)) => Reply::new(200, bytes.clone()).with("content-type", &self.types[wanted]),
            ("blobs", Some(bytes)) => Reply::new(200, bytes.clone()),
            _ => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#),
        }
    }

    /// Serves all this as a registry.
    pub(crate) fn serve(&self) -> FakeRegistry {
        let shelf = self.clone();
        FakeRegistry::start(move |seen, _| shelf.answer(seen))
    }

    /// Writes a layout with these roots and their names.
    pub(crate) fn write(&self, at: &Path, roots: &[(&Value, &str)]) {
        fs::create_dir_all(at.join("blobs/sha256")).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(at.join("blobs/sha256").join(&digest["sha256:".len()..]), bytes).unwrap();
        }
        let named = |(row, name): &(&Value, &str)| {
            let mut row = (*row).clone();
            if !name.is_empty() {
                row["annotations"] = json!({ REF_NAME: name });
            }
            row
        };
        let rows: Vec<Value> = roots.iter().map(named).collect();
        fs::write(at.join("index.json"), json!({ "schemaVersion": 2, "manifests": rows }).to_string()).unwrap();
        fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}
