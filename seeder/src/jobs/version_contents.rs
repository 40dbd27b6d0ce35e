//! The content of each version of a name, for longer than the jobs are remembered.
//!
//! On the hosts a version is a folder, and an operator returns to a version by its label. So a label has one content.
//! Invariant: of each name the newest [`VERSIONS_MAX`] versions are remembered, each with one content.

use super::Jobs;
use crate::errors::StateError;
use minicbor::{Decode, Encode};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::ContentId;

/// Versions of one name that are remembered. The oldest goes when another comes.
const VERSIONS_MAX: usize = 256;

/// Why a version is not announced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VersionError {
    #[error(
        "version {version} of {name} has another content already ({former}, not {found}); push it as another version, \
         or replace it with --replace"
    )]
    Taken { name: String, version: String, former: String, found: String },
    #[error("cannot note the content of the version")]
    State(#[from] StateError),
}

/// A version and its content on disk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct VersionContent {
    #[n(0)]
    version: String,
    #[n(1)]
    content: ContentId,
}

/// Puts a version into the list. Returns the content that it has already, if that is another one and must stay.
fn put(versions: &mut Vec<VersionContent>, version: &str, content: ContentId, replace: bool) -> Result<(), ContentId> {
    if let Some(place) = versions.iter().position(|known| known.version == version) {
        let former = versions[place].content;
        if former != content && !replace {
            return Err(former);
        }
        versions.remove(place);
    }
    versions.push(VersionContent { version: version.to_string(), content });
    if versions.len() > VERSIONS_MAX {
        versions.remove(0);
    }
    Ok(())
}

impl Jobs {
    /// Notes the content of a version that is about to be announced. Blocks.
    ///
    /// The tag of an image may move, and its hosts have no folder of it, so images are not noted.
    ///
    /// # Errors
    /// Returns [`VersionError::Taken`] if the version has another content and must not be replaced.
    pub(crate) fn note_version(&self, announcement: &Announcement, replace: bool) -> Result<(), VersionError> {
        let Announcement { kind, name, version, content, .. } = announcement;
        if *kind == Kind::Image {
            return Ok(());
        }
        let (store, key) = (&self.node.store, format!("version-contents/{kind}/{name}"));
        // Two pushes of one version may end their ingests at the same time.
        let turn = self.rows();
        let stored = store.get_state(&key).map_err(StateError::from)?;
        let mut versions: Vec<VersionContent> = match stored.as_deref().map(decode_exact).transpose() {
            Ok(versions) => versions.unwrap_or_default(),
            Err(error) => {
                tracing::error!(key, %error, "cannot read the contents of versions");
                Vec::new()
            }
        };
        put(&mut versions, version, *content, replace).map_err(|former| VersionError::Taken {
            name: name.clone(),
            version: version.clone(),
            former: former.short(),
            found: content.short(),
        })?;
        store.put_state(&key, Some(encode(&versions))).map_err(StateError::from)?;
        drop(turn);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_content_unless_it_is_replaced() {
        let content = |label: u8| ContentId([label; 32]);
        let mut versions = Vec::new();
        put(&mut versions, "1", content(1), false).unwrap();
        put(&mut versions, "2", content(2), false).unwrap();
        put(&mut versions, "1", content(1), false).unwrap();
        assert_eq!(put(&mut versions, "1", content(3), false), Err(content(1)));
        put(&mut versions, "3", content(1), false).unwrap();
        put(&mut versions, "1", content(3), true).unwrap();
        assert_eq!(put(&mut versions, "1", content(1), false), Err(content(3)), "only the newest content counts");
        assert_eq!(versions.len(), 3);
        let back: Vec<VersionContent> = decode_exact(&encode(&versions)).unwrap();
        assert_eq!(back, versions);
    }

    #[test]
    fn the_oldest_versions_are_forgotten_first() {
        let mut versions = Vec::new();
        for number in 0..VERSIONS_MAX + 10 {
            put(&mut versions, &number.to_string(), ContentId([1; 32]), false).unwrap();
        }
        assert_eq!((versions.len(), &*versions[0].version), (VERSIONS_MAX, "10"));
    }
}
