//! Platforms of images, and the choice of an index's rows for one platform.
//!
//! Seeders and hosts choose by this module alone, so that a host finds what its seeder brought. containerd chooses once
//! more when it starts a container. Its package `github.com/containerd/platforms` is the source of the names and of the
//! order here.
//! Invariant: a row for a higher variant than the wanted one is never chosen.

use crate::go_json::{FieldError, GoValue};
use std::fmt;

/// The highest version of a variant whose lower ones are tried. No processor has a higher one.
const VERSION_MAX: u32 = 16;
/// The highest minor versions of arm64 v8 and v9.
const ARM64_MINORS: [u32; 2] = [9, 7];

/// An operating system and a processor, by their usual names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Empty for the usual variant of a processor.
    variant: String,
    /// Features that an image needs of the operating system.
    features: Vec<String>,
}

/// A text that names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform `{0}`: write os/arch or os/arch/variant")]
pub struct ParsePlatformError(String);

impl Platform {
    /// Returns a platform with its names in their usual form, for example `amd64` for `x86_64`. No system means Linux.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "" => "linux".to_string(),
            "macos" => "darwin".to_string(),
            other => other.to_string(),
        };
        let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.into(), variant: variant.into(), features: Vec::new() }
    }

    /// Returns Linux on the processor of this machine.
    pub fn of_this_machine() -> Self {
        Self::new("linux", std::env::consts::ARCH, "")
    }

    /// Reads the platform of a row of an index, or of a configuration.
    ///
    /// # Errors
    /// Fails if a field has another type than the image format says.
    pub fn read(value: &GoValue) -> Result<Self, FieldError> {
        let mut features: Vec<String> = value.texts("os.features")?.into_iter().map(str::to_string).collect();
        features.retain(|feature| !feature.is_empty());
        let named = Self::new(value.text("os")?, value.text("architecture")?, value.text("variant")?);
        Ok(Self { features, ..named })
    }

    fn with_variant(&self, architecture: &str, variant: &str) -> Self {
        Self::new(&self.os, architecture, variant)
    }

    /// Returns the platforms whose programs run on this one, the best first.
    fn compatible(&self) -> Vec<Self> {
        let mut all = vec![Self { features: Vec::new(), ..self.clone() }];
        match self.architecture.as_str() {
            "amd64" => {
                all.extend(lower(&self.variant, 1).map(|version| self.with_variant("amd64", &format!("v{version}"))));
                all.push(self.with_variant("386", ""));
            }
            "arm" => {
                all.extend(lower(&self.variant, 5).map(|version| self.with_variant("arm", &format!("v{version}"))));
            }
            "arm64" => {
                let lower = lower_arm64(&self.variant);
                all.extend(lower.iter().map(|variant| self.with_variant("arm64", variant)));
                all.extend((5..=8).rev().map(|version| self.with_variant("arm", &format!("v{version}"))));
            }
            _ => {}
        }
        all
    }

    /// Returns whether an image for the other platform runs on this one. Features are left to containerd.
    pub fn runs(&self, other: &Self) -> bool {
        self.compatible().iter().any(|platform| platform.is_same_machine(other))
    }

    /// Returns whether the name of this platform says nothing, as for the attestations in an index.
    fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown" || self.architecture.is_empty()
    }

    fn is_same_machine(&self, other: &Self) -> bool {
        (&self.os, &self.architecture, &self.variant) == (&other.os, &other.architecture, &other.variant)
    }
}

/// Returns the versions below the one of a variant such as `v7`, the highest first, down to `lowest`.
fn lower(variant: &str, lowest: u32) -> impl Iterator<Item = u32> + use<> {
    let version = variant.strip_prefix('v').and_then(|version| version.parse::<u32>().ok()).unwrap_or(lowest);
    (lowest..version.min(VERSION_MAX)).rev()
}

/// Returns the variants below a variant of arm64, the highest first. `v9.N` includes what `v8.(N + 5)` has.
fn lower_arm64(variant: &str) -> Vec<String> {
    let version = if variant.is_empty() { "v8" } else { variant };
    let Some(version) = version.strip_prefix('v') else { return Vec::new() };
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else { return Vec::new() };
    let name = |major: u32, minor: u32| if minor == 0 { format!("v{major}") } else { format!("v{major}.{minor}") };
    let [eight, nine] = ARM64_MINORS;
    match major {
        8 if minor <= eight => (0..minor).rev().map(|minor| name(8, minor)).collect(),
        9 if minor <= nine => {
            let of_nine = (0..minor).rev().map(|minor| name(9, minor));
            of_nine.chain((0..=(minor + 5).min(eight)).rev().map(|minor| name(8, minor))).collect()
        }
        _ => Vec::new(),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl std::str::FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let invalid = || ParsePlatformError(text.chars().take(80).collect());
        let is_plain = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').take(4).collect();
        if !parts.iter().all(is_plain) {
            return Err(invalid());
        }
        match parts[..] {
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(invalid()),
        }
    }
}

/// What a row of an index says of its platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatedPlatform {
    /// The row is for this platform.
    Is(Platform),
    /// The row names no platform.
    Nothing,
    /// The row cannot be read, so that it is never chosen.
    Unreadable,
}

impl StatedPlatform {
    /// Reads what a row says.
    pub fn of(row: &GoValue) -> Self {
        match row {
            GoValue::Map(_) => match row.get("platform") {
                GoValue::Null => Self::Nothing,
                platform @ GoValue::Map(_) => Platform::read(platform).map_or(Self::Unreadable, Self::Is),
                _ => Self::Unreadable,
            },
            _ => Self::Unreadable,
        }
    }
}

/// The rows of an index that are for a platform, as places in the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlatformChoice {
    /// The best row for the platform first. There are more where releases of containerd choose differently: until 2.3
    /// they ignore `os.features`, and later ones refuse a row with features. CRI of 2.x fetches all equal rows.
    pub best: Vec<usize>,
    /// Rows without a platform. containerd takes the first of them if no row fits.
    pub unstated: Vec<usize>,
    /// Whether a row names a platform that a machine can have.
    pub is_by_platform: bool,
}

impl PlatformChoice {
    /// Chooses the rows for a platform: exact ones before compatible ones, and equal ones in their order.
    pub fn new(wanted: &Platform, rows: &[StatedPlatform]) -> Self {
        let compatible = wanted.compatible();
        let rank = |row: &StatedPlatform| match row {
            StatedPlatform::Is(has) => compatible.iter().position(|platform| platform.is_same_machine(has)),
            _ => None,
        };
        let has_features = |row: &StatedPlatform| matches!(row, StatedPlatform::Is(has) if !has.features.is_empty());
        let mut ranked: Vec<(usize, usize)> =
            rows.iter().enumerate().filter_map(|(place, row)| Some((rank(row)?, place))).collect();
        ranked.sort_unstable();
        let plain: Vec<(usize, usize)> =
            ranked.iter().filter(|(_, place)| !has_features(&rows[*place])).copied().collect();
        let equal = plain.iter().filter(|(rank, _)| Some(*rank) == plain.first().map(|(rank, _)| *rank));
        let mut best: Vec<usize> = equal.map(|(_, place)| *place).collect();
        best.extend(ranked.first().map(|(_, place)| *place).filter(|place| !best.contains(place)));
        let unstated = rows.iter().enumerate().filter(|(_, row)| **row == StatedPlatform::Nothing);
        let is_by_platform = rows.iter().any(|row| matches!(row, StatedPlatform::Is(has) if !has.is_unknown()));
        Self { best, unstated: unstated.map(|(place, _)| place).collect(), is_by_platform }
    }

    /// Returns the rows that containerd may choose.
    pub fn candidates(&self) -> Vec<usize> {
        if self.best.is_empty() { self.unstated.iter().take(1).copied().collect() } else { self.best.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    /// The first row that is chosen for a platform among rows that are written as texts.
    fn chosen<'a>(wanted: &str, rows: &[&'a str]) -> Option<&'a str> {
        let stated: Vec<StatedPlatform> = rows
            .iter()
            .map(|row| if row.is_empty() { StatedPlatform::Nothing } else { StatedPlatform::Is(platform(row)) })
            .collect();
        PlatformChoice::new(&platform(wanted), &stated).candidates().first().map(|place| rows[*place])
    }

    #[test]
    fn names_have_one_form() {
        let table = [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/X86-64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm64/v8.0", "linux/arm64"),
            ("linux/arm64/9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("linux/riscv64", "linux/riscv64"),
        ];
        for (written, usual) in table {
            assert_eq!(platform(written).to_string(), usual, "{written}");
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "linux/a\nb"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert_eq!(Platform::new("", "arm64", ""), platform("linux/arm64"), "a row may name the processor alone");
    }

    #[test]
    fn the_choice_is_the_one_of_containerd() {
        let table = [
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"][..], Some("linux/amd64")),
            ("linux/amd64", &["linux/amd64/v2"], None),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2"], Some("linux/amd64/v2")),
            ("linux/amd64/v3", &["linux/amd64/v4", "linux/amd64/v3", "linux/amd64"], Some("linux/amd64/v3")),
            ("linux/amd64", &["linux/386"], Some("linux/386")),
            ("linux/386", &["linux/amd64"], None),
            ("linux/arm64/v8", &["linux/arm64"], Some("linux/arm64")),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some("linux/arm64/v8")),
            ("linux/arm64", &["linux/arm64/v9", "linux/arm/v6", "linux/arm/v7"], Some("linux/arm/v7")),
            ("linux/arm64/v9", &["linux/arm64/v8.5", "linux/arm64/v8"], Some("linux/arm64/v8.5")),
            ("linux/arm64/v9", &["linux/arm64/v8.6"], None),
            ("linux/arm", &["linux/arm/v5", "linux/arm/v7"], Some("linux/arm/v7")),
            ("linux/arm/v7", &["linux/arm/v6"], Some("linux/arm/v6")),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/amd64", &["windows/amd64", "", "linux/arm64"], Some("")),
            ("linux/amd64", &["", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["unknown/unknown", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["unknown/unknown"], None),
            ("linux/s390x", &["linux/s390x"], Some("linux/s390x")),
            ("linux/amd64", &[], None),
        ];
        for (wanted, rows, expected) in table {
            assert_eq!(chosen(wanted, rows), expected, "{wanted} among {rows:?}");
        }
    }

    fn stated(json: &str) -> StatedPlatform {
        StatedPlatform::of(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn rows_are_read_or_left_aside() {
        let amd64 = StatedPlatform::Is(platform("linux/amd64"));
        assert_eq!(stated(r#"{"platform":{"architecture":"amd64"}}"#), amd64);
        assert_eq!(stated(r#"{"digest":"sha512:00","platform":{"os":"linux","architecture":"x86_64"}}"#), amd64);
        assert_eq!(stated(r#"{"platform":null}"#), StatedPlatform::Nothing);
        assert_eq!(stated("{}"), StatedPlatform::Nothing);
        for bad in ["null", "7", "[]", r#"{"platform":"linux/amd64"}"#, r#"{"platform":{"os":1}}"#] {
            assert_eq!(stated(bad), StatedPlatform::Unreadable, "{bad}");
        }
        let rows = ["null", r#"{"platform":{"os":[]}}"#, r#"{"platform":{"os":"linux","architecture":"amd64"}}"#];
        let choice = PlatformChoice::new(&platform("linux/amd64"), &rows.map(stated));
        assert_eq!((choice.candidates(), choice.is_by_platform), (vec![2], true));
        let attestations = [stated(r#"{"platform":{"os":"unknown","architecture":"unknown"}}"#)];
        assert!(!PlatformChoice::new(&platform("linux/amd64"), &attestations).is_by_platform);
    }

    #[test]
    fn a_row_with_features_comes_beside_the_plain_one() {
        let plain = r#"{"platform":{"os":"linux","architecture":"amd64"}}"#;
        let nydus = r#"{"platform":{"os":"linux","architecture":"amd64","os.features":["nydus.remoteimage.v1"]}}"#;
        let best = |rows: &[&str]| {
            let rows: Vec<StatedPlatform> = rows.iter().map(|row| stated(row)).collect();
            PlatformChoice::new(&platform("linux/amd64"), &rows).best
        };
        assert_eq!(best(&[nydus, plain]), [1, 0]);
        assert_eq!(best(&[plain, nydus]), [0], "both kinds of containerd take the plain one");
        assert_eq!(best(&[nydus]), [0]);
    }

    fn any_platform() -> impl Strategy<Value = Platform> {
        let os = prop::sample::select(vec!["", "linux", "Linux", "windows", "unknown"]);
        let arch =
            prop::sample::select(vec!["amd64", "x86_64", "386", "arm64", "aarch64", "arm", "armhf", "s390x", ""]);
        let variant =
            prop::sample::select(vec!["", "v1", "v2", "v3", "v5", "v6", "v7", "v8", "8", "v8.2", "v9", "v99"]);
        (os, arch, variant).prop_map(|(os, arch, variant)| Platform::new(os, arch, variant))
    }

    proptest! {
        #[test]
        fn a_name_in_its_usual_form_stays_as_it_is(has in any_platform()) {
            let again = Platform::new(&has.os, &has.architecture, &has.variant);
            prop_assert_eq!(again, has);
        }

        #[test]
        fn an_exact_row_wins_and_only_compatible_rows_are_chosen(
            wanted in any_platform(),
            rows in prop::collection::vec(any_platform(), 0..8),
        ) {
            let stated: Vec<StatedPlatform> = rows.iter().cloned().map(StatedPlatform::Is).collect();
            let choice = PlatformChoice::new(&wanted, &stated);
            prop_assert!(choice.best.windows(2).all(|two| two[0] < two[1] && rows[two[0]] == rows[two[1]]));
            match choice.best.first() {
                Some(place) => prop_assert!(wanted.runs(&rows[*place])),
                None => prop_assert!(rows.iter().all(|row| !wanted.runs(row))),
            }
            let exact: Vec<usize> = (0..rows.len()).filter(|place| rows[*place] == wanted).collect();
            if !exact.is_empty() {
                prop_assert_eq!(choice.best, exact);
            }
        }
    }
}
