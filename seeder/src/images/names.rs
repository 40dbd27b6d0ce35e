//! Names of images' jobs.
//!
//! Invariant: two images of different references never get the same job name. Hosts would take one for a new version
//! of the other.

use shoal_proto::announcement::{is_content_name, is_version};
use shoal_proto::ids::Hash;
use shoal_proto::image::Reference;
use shoal_proto::limits;

/// Name and version of a job.
#[derive(Debug, PartialEq, Eq)]
pub struct JobNames {
    pub(super) name: String,
    pub(super) version: String,
}

/// Returns the name and version of the job for an image.
///
/// Each tag is a name of its own, so that two tags of a repository can be on their way at the same time. A tag that
/// moves is a new version of that name. A tag with a digest does not move, so it is a name beside the tag.
pub fn job_names(reference: &Reference) -> JobNames {
    let pinned = reference.digest.map(|digest| format!("sha256-{}", digest.short()));
    let version = pinned.clone().or_else(|| reference.tag.clone()).unwrap_or_else(|| "latest".into());
    // A registry's name contains no `_`, so no other reference maps to this name.
    let repository = format!("{}/{}", reference.host.replace(':', "_"), reference.path);
    let name = match (&reference.tag, &pinned) {
        // Joined by `_`, so that no repository ends like this and only a tag made for the purpose would.
        (Some(tag), Some(pinned)) => format!("{repository}/{tag}_{pinned}"),
        _ => format!("{repository}/{version}"),
    };
    // A part of the text for people, and a hash that makes the name unique.
    let unique = |text: &str, len: usize| {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '/') { c } else { '-' };
        let head: String = text.chars().take(len).map(plain).collect();
        format!("{}-{}", head.trim_matches(['/', '.', '-']), &Hash::of(text.as_bytes()).to_string()[..16])
    };
    let version_fits = is_version(&version);
    let name = if is_content_name(&name) { name } else { format!("image/{}", unique(&name.replace('/', "-"), 40)) };
    let version = if version_fits { version } else { format!("v{}", unique(&version, 40)) };
    debug_assert!(is_content_name(&name) && is_version(&version) && name.len() <= limits::NAME_BYTES_MAX);
    JobNames { name, version }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_fits() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        let names = [
            ("registry.example:5000/lab/app:v1", "registry.example_5000/lab/app/v1", "v1"),
            ("nginx", "docker.io/library/nginx/latest", "latest"),
            (&format!("r.example/a@{digest}"), "r.example/a/sha256-0f0f0f0f0f0f", "sha256-0f0f0f0f0f0f"),
            (&format!("r.example/a:v1@{digest}"), "r.example/a/v1_sha256-0f0f0f0f0f0f", "sha256-0f0f0f0f0f0f"),
        ];
        for (reference, name, version) in names {
            let expected = JobNames { name: name.into(), version: version.into() };
            assert_eq!(job_names(&reference.parse().unwrap()), expected);
        }
        let long = "a".repeat(100);
        let odd = [
            "r.example/a:current".to_string(),
            "r.example/a:_x".into(),
            "r.example/a:-_".replace(":-", ":_"),
            format!("r.example/{long}"),
            format!("r.example/{long}b"),
            format!("r.example/a:{long}"),
            format!("r.example/{}", ["ab"; 60].join("/")),
            format!("r.example/a:v1@sha256:{}", "0f".repeat(32)),
            format!("r.example/a@sha256:{}", "0f".repeat(32)),
            format!("r.example/a/v1@sha256:{}", "0f".repeat(32)),
            "r.example/a:v1".into(),
            "r.example/a/v1:v1".into(),
        ];
        let mut seen = BTreeSet::new();
        for text in odd {
            let JobNames { name, version } = job_names(&text.parse().unwrap());
            assert!(is_content_name(&name) && is_version(&version), "{text}: {name} {version}");
            assert!(seen.insert(name), "{text}");
        }
    }
}
