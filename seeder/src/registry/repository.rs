//! One repository of one registry: documents by tag or digest, blobs, and lists of referrers.
//!
//! Invariant: a document that a reference names by digest has that digest.

use super::error::{Patience, RegistryError};
use super::exchange::Exchange;
use crate::config::SeederConfig;
use crate::oci_documents::{DOCUMENT_BYTES_MAX, digest_of};
use bytes::Bytes;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue, LINK, RANGE};
use shoal_proto::go_json::GoValue;
use shoal_proto::image::{DOCKER_INDEX, DOCKER_MANIFEST, Digest, OCI_INDEX, OCI_MANIFEST, Reference, is_index};
use shoal_proto::image_documents::{Descriptor, IndexDocument};
use shoal_service::http_client::transport::HttpResponse;
use std::time::Duration;

/// Pages of a list of referrers that are read.
const REFERRER_PAGES_MAX: usize = 16;
/// Referrers of one manifest that are read.
const REFERRERS_MAX: usize = 256;
/// How long requests for referrers are repeated. An image is pulled without them.
const REFERRERS_PATIENCE: Duration = Duration::from_secs(10);

/// A manifest or index.
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// What a reference names: a manifest or index.
pub(crate) struct Root {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Bytes,
}

/// One repository of one registry.
pub(crate) struct Repository {
    pub exchange: Exchange,
    /// How long a failing request is repeated.
    pub patience: Duration,
}

impl Repository {
    /// Returns the repository of a reference. Reads the credentials each time, because an operator may change them.
    ///
    /// # Errors
    /// Returns an error if the settings for the registry cannot be used, or a credential helper fails.
    pub(crate) async fn open(config: &SeederConfig, reference: &Reference) -> Result<Self, RegistryError> {
        Ok(Self { exchange: Exchange::open(config, reference).await?, patience: config.pull_patience.0 })
    }

    /// Repeats failing requests for this long instead.
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub fn malformed(&self, why: impl Into<String>) -> RegistryError {
        self.exchange.malformed(why)
    }

    /// Returns the manifest or index that a reference names.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve it, or its digest is wrong.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Root, RegistryError> {
        let name = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        };
        let Document { media_type, bytes } = self.document(&name).await?;
        let digest = digest_of(&bytes);
        if let Some(expected) = reference.digest
            && expected != digest
        {
            let registry = self.exchange.registry().to_string();
            return Err(RegistryError::WrongDigest { registry, expected, found: digest });
        }
        Ok(Root { descriptor: Descriptor::new(&media_type, digest, bytes.len() as u64), bytes })
    }

    /// Returns a manifest or index by tag or digest. The caller that asks by digest checks the digest.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve it.
    pub(crate) async fn document(&self, name: &str) -> Result<Document, RegistryError> {
        self.document_within(name, self.patience).await
    }

    async fn document_within(&self, name: &str, patience: Duration) -> Result<Document, RegistryError> {
        let mut headers = HeaderMap::new();
        let types = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        headers.insert(ACCEPT, self.exchange.header(types)?);
        let what = format!("{}:{name}", self.exchange.path());
        let path = format!("/v2/{}/manifests/{name}", self.exchange.path());
        let mut patience = Patience::new(patience);
        loop {
            match self.try_document(&what, &path, &headers).await {
                Ok(found) => return Ok(found),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn try_document(&self, what: &str, path: &str, headers: &HeaderMap) -> Result<Document, RegistryError> {
        let answer = self.exchange.get(what, path, headers).await?;
        let header =
            answer.header("content-type").map(|kind| kind.split(';').next().unwrap_or(kind).trim().to_string());
        let bytes = self.whole_document(what, answer).await?;
        let document: GoValue = serde_json::from_slice(&bytes)
            .map_err(|error| self.malformed(format!("the manifest of {what} cannot be read: {error}")))?;
        let media_type = match document.text("mediaType") {
            Ok("") | Err(_) => header.unwrap_or_default(),
            Ok(own) => own.to_string(),
        };
        Ok(Document { media_type, bytes })
    }

    /// Returns the bytes of a document within the limit.
    async fn whole_document(&self, what: &str, mut answer: HttpResponse) -> Result<Bytes, RegistryError> {
        let too_large = || self.malformed(format!("the manifest of {what} exceeds {DOCUMENT_BYTES_MAX} bytes"));
        let announced = answer.header("content-length").and_then(|len| len.parse::<u64>().ok());
        if announced.is_some_and(|len| len > DOCUMENT_BYTES_MAX) {
            return Err(too_large());
        }
        answer.whole(DOCUMENT_BYTES_MAX).await?.ok_or_else(too_large)
    }

    /// Asks for a blob from the byte `from` on.
    pub async fn blob_from(&self, digest: &Digest, from: u64) -> Result<HttpResponse, RegistryError> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, self.exchange.header(format!("bytes={from}-"))?);
        }
        let path = format!("/v2/{}/blobs/{digest}", self.exchange.path());
        self.exchange.get(&format!("blob {digest}"), &path, &headers).await
    }

    /// Returns whether the registry has a blob. Asks with GET, because storages refuse HEAD for signed addresses.
    ///
    /// # Errors
    /// Returns an error if the registry neither serves the blob nor denies that it has it.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let mut patience = Patience::new(self.patience);
        loop {
            match self.blob_from(digest, 0).await {
                Ok(_) => return Ok(true),
                Err(RegistryError::NotFound { .. } | RegistryError::Denied { .. }) => return Ok(false),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    /// Returns all manifests that refer to a manifest. Asks the registry's list, or else the tag that clients keep at
    /// registries without such lists.
    ///
    /// # Errors
    /// Returns an error if the registry does not give its whole list.
    pub(crate) async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        let limit = self.patience.min(REFERRERS_PATIENCE);
        let mut patience = Patience::new(limit);
        loop {
            match self.listed_referrers(subject).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => break,
                Err(error) => patience.after(error).await?,
            }
        }
        match self.document_within(&format!("sha256-{}", subject.hex()), limit).await {
            Ok(document) if is_index(&document.media_type) => self.rows(&document.bytes),
            // A registry may answer with anything at a tag that it does not know.
            Ok(_) | Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Reads all pages of the registry's list. Returns `None` if the registry has no such lists.
    async fn listed_referrers(&self, subject: &Digest) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let what = format!("the referrers of {subject}");
        let path = format!("/v2/{}/referrers/{subject}", self.exchange.path());
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
        let mut answer = match self.exchange.get(&what, &path, &headers).await {
            // Registries without the list answer in any of these ways.
            Err(RegistryError::NotFound { .. } | RegistryError::Refused { status: 400 | 405 | 406 | 501, .. }) => {
                return Ok(None);
            }
            answer => answer?,
        };
        let mut found = Vec::new();
        for _ in 0..REFERRER_PAGES_MAX {
            let next = answer.header(LINK.as_str()).and_then(next_page).map(str::to_string);
            let bytes = self.whole_document(&what, answer).await?;
            found.extend(self.rows(&bytes)?);
            if found.len() > REFERRERS_MAX {
                return Err(self.malformed(format!("it lists more than {REFERRERS_MAX} for {what}")));
            }
            match next {
                None => return Ok(Some(found)),
                Some(link) => answer = self.exchange.get_next(&what, &path, &link).await?,
            }
        }
        Err(self.malformed(format!("its list of {what} has more than {REFERRER_PAGES_MAX} pages")))
    }

    /// Reads the rows of an index.
    fn rows(&self, bytes: &[u8]) -> Result<Vec<Descriptor>, RegistryError> {
        let index = serde_json::from_slice::<GoValue>(bytes).ok().and_then(|value| IndexDocument::read(&value).ok());
        let index = index.ok_or_else(|| self.malformed("its list of referrers is no index"))?;
        let rows = (0..index.len().min(REFERRERS_MAX + 1)).map(|place| index.row(place));
        let rows: Result<Vec<Descriptor>, _> = rows.collect();
        rows.map_err(|error| self.malformed(format!("a row of its list of referrers cannot be read: {error}")))
    }
}

/// Returns the next page that a `Link` header names (RFC 8288).
fn next_page(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, params) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |param: &str| {
            let (name, value) = param.split_once('=').unwrap_or((param, ""));
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        };
        params.split(';').any(is_next).then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found() {
        for (header, page) in [
            ("</v2/a/referrers/x?page=2>; rel=\"next\"", Some("/v2/a/referrers/x?page=2")),
            ("<?n=2>;rel=next", Some("?n=2")),
            ("</first>; rel=first, </next>; title=x; REL=\"Next\"", Some("/next")),
            ("</first>; rel=first", None),
            ("</a", None),
            ("", None),
        ] {
            assert_eq!(next_page(header), page, "{header}");
        }
    }
}
