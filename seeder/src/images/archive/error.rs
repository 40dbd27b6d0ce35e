//! Errors of images in files.
//!
//! Invariant: an error names the file that is at fault.

use crate::oci_documents::DocumentError;
use shoal_proto::image::Digest;
use shoal_proto::image_documents::DocumentFault;
use std::io;

/// Why files contain no image, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("cannot read {file}")]
    Io { file: String, source: io::Error },
    #[error("{0} is neither an OCI layout nor an archive of `docker save`; unpack a compressed archive first")]
    UnknownForm(String),
    #[error("{file} is not JSON of the expected form")]
    Json { file: String, source: serde_json::Error },
    #[error("{file} cannot be used")]
    Fault { file: String, source: DocumentFault },
    #[error("{file}: {why}")]
    Malformed { file: String, why: String },
    #[error("the files contain several images, or one without a full name; name one with --ref: {0}")]
    Ambiguous(String),
    #[error("the files contain no image {wanted}; they contain: {has}")]
    NotFound { wanted: String, has: String },
    #[error("the files contain {0} images without names; save the image by its name, so that --ref can find it")]
    Unnamed(usize),
    #[error("the files lack blob {digest} (`{name}`); save the whole image")]
    Missing { digest: Digest, name: String },
    #[error("blob {digest} (`{name}`) has {size} bytes, and its manifest says {expected}; save the image again")]
    Length { digest: Digest, name: String, size: u64, expected: u64 },
    #[error("the files contain {found}, not the image that {reference} names; push other files, or name it by a tag")]
    WrongDigest { reference: String, found: Digest },
    #[error(transparent)]
    Document(#[from] DocumentError),
}

pub fn io_error<'a>(file: &'a str) -> impl FnOnce(io::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Io { file: file.to_string(), source }
}

pub fn json_error<'a>(file: &'a str) -> impl FnOnce(serde_json::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Json { file: file.to_string(), source }
}

pub fn fault_error<'a>(file: &'a str) -> impl FnOnce(DocumentFault) -> ArchiveError + 'a {
    move |source| ArchiveError::Fault { file: file.to_string(), source }
}

pub fn malformed(file: &str, why: impl Into<String>) -> ArchiveError {
    ArchiveError::Malformed { file: file.to_string(), why: why.into() }
}
