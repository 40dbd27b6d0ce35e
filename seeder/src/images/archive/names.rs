//! Which image of the files is meant.
//!
//! Invariant: an image is taken by its digest, its name, its tag, or because it is the only one. The seeder never takes
//! one of several images without a word.

use super::Form;
use super::error::ArchiveError;
use shoal_proto::image::{Digest, Reference};
use std::collections::BTreeSet;

/// Names that an error lists.
const NAMES_LISTED_MAX: usize = 32;

/// An image that one form of the files lists.
pub struct Listed {
    pub form: Form,
    /// Its place in the list of its form.
    pub place: usize,
    /// The digest of its root, if the list has it.
    pub digest: Option<Digest>,
    /// Full names, or tags alone.
    pub names: Vec<String>,
}

/// The images that all forms list.
pub struct Listing {
    pub images: Vec<Listed>,
}

/// The chosen image.
pub struct Chosen {
    pub reference: Reference,
    /// Where it is, the better form first.
    pub forms: Vec<ChosenForm>,
}

/// The chosen image in one form.
#[derive(Debug, PartialEq, Eq)]
pub struct ChosenForm {
    pub form: Form,
    /// Several places are the platforms of one image.
    pub places: Vec<usize>,
}

/// Why an image is the wanted one, the weakest reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Only,
    Tag,
    Name,
    Digest,
}

/// Returns a name that has a registry or a tag. A lone tag would parse as an image of Docker's own library.
fn full_name(name: &str) -> Option<Reference> {
    name.contains(['/', ':']).then(|| name.parse().ok()).flatten()
}

impl Listing {
    fn of(&self, form: Form) -> impl Iterator<Item = &Listed> {
        self.images.iter().filter(move |image| image.form == form)
    }

    fn names(&self) -> BTreeSet<&str> {
        self.images.iter().flat_map(|image| &image.names).map(String::as_str).collect()
    }

    fn listed(&self) -> String {
        self.names().into_iter().take(NAMES_LISTED_MAX).collect::<Vec<_>>().join(", ")
    }

    /// Whether the files have one image only, which has no full name.
    fn is_single(&self) -> bool {
        let names = self.names();
        names.len() <= 1 && names.iter().all(|name| full_name(name).is_none()) && self.of(Form::Saved).count() <= 1
    }

    /// Returns the places of the wanted image in one form, and why it is the wanted one.
    fn find(&self, form: Form, wanted: &Reference) -> Option<(Reason, ChosenForm)> {
        let places = |fits: &dyn Fn(&Listed) -> bool| -> Vec<usize> {
            self.of(form).filter(|image| fits(image)).map(|image| image.place).collect()
        };
        let has_digest = |image: &Listed| image.digest.is_some() && image.digest == wanted.digest;
        let has_name = |image: &Listed| {
            image.names.iter().filter_map(|name| full_name(name)).any(|name| wanted.has_name_of(&name))
        };
        let has_tag = |image: &Listed| {
            image.names.iter().any(|name| full_name(name).is_none() && Some(name) == wanted.tag.as_ref())
        };
        let found = [
            (Reason::Digest, places(&has_digest)),
            (Reason::Name, places(&has_name)),
            (Reason::Tag, places(&has_tag)),
            (Reason::Only, if self.is_single() { places(&|_| true) } else { Vec::new() }),
        ];
        let (reason, places) = found.into_iter().find(|(_, places)| !places.is_empty())?;
        Some((reason, ChosenForm { form, places }))
    }
}

/// Returns the wanted image, or the only one that has a full name.
///
/// # Errors
/// Returns an error if the files do not have exactly one such image.
pub fn choose(listing: &Listing, wanted: Option<&Reference>) -> Result<Chosen, ArchiveError> {
    let Some(wanted) = wanted else {
        let references: BTreeSet<Reference> = listing.names().into_iter().filter_map(full_name).collect();
        let mut references = references.iter();
        let (Some(reference), None) = (references.next(), references.next()) else {
            return Err(ArchiveError::Ambiguous(listing.listed()));
        };
        return choose(listing, Some(reference));
    };
    let mut found: Vec<(Reason, ChosenForm)> =
        [Form::Layout, Form::Saved].into_iter().filter_map(|form| listing.find(form, wanted)).collect();
    // A stable order, so that a layout comes first among equals.
    found.sort_by_key(|(reason, _)| std::cmp::Reverse(*reason));
    let Some((best, _)) = found.first() else {
        return Err(match listing.names().is_empty() {
            true => ArchiveError::Unnamed(listing.images.len()),
            false => ArchiveError::NotFound { wanted: wanted.to_string(), has: listing.listed() },
        });
    };
    let best = *best;
    // For a weaker reason the other form may mean another image.
    found.retain(|(reason, form)| *reason == best || (*reason >= Reason::Tag && form.places.len() == 1));
    Ok(Chosen { reference: wanted.clone(), forms: found.into_iter().map(|(_, form)| form).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(layout: &[&[&str]], saved: &[&[&str]]) -> Listing {
        let of = |form: Form, lists: &[&[&str]]| -> Vec<Listed> {
            let listed = |(place, names): (usize, &&[&str])| Listed {
                form,
                place,
                digest: (form == Form::Layout).then_some(Digest([place as u8; 32])),
                names: names.iter().map(|name| name.to_string()).collect(),
            };
            lists.iter().enumerate().map(listed).collect()
        };
        Listing { images: of(Form::Layout, layout).into_iter().chain(of(Form::Saved, saved)).collect() }
    }

    fn chosen(listing: &Listing, wanted: Option<&str>) -> Result<Vec<ChosenForm>, ArchiveError> {
        let wanted: Option<Reference> = wanted.map(|text| text.parse().unwrap());
        choose(listing, wanted.as_ref()).map(|chosen| chosen.forms)
    }

    fn refused(listing: &Listing, wanted: Option<&str>) -> String {
        chosen(listing, wanted).unwrap_err().to_string()
    }

    fn at(form: Form, places: &[usize]) -> ChosenForm {
        ChosenForm { form, places: places.to_vec() }
    }

    #[test]
    fn the_form_that_names_the_image_comes_first() {
        let both = listing(&[&["docker.io/library/a:v1"]], &[&["a:v1"]]);
        assert_eq!(chosen(&both, None).unwrap(), [at(Form::Layout, &[0]), at(Form::Saved, &[0])]);
        // One image has a name in the layout, and two in the other list.
        let two = listing(&[&["v1"]], &[&["r.example/a:v1"], &["r.example/b:v2"]]);
        assert_eq!(chosen(&two, Some("r.example/b:v2")).unwrap(), [at(Form::Saved, &[1])]);
        assert_eq!(
            chosen(&two, Some("r.example/a:v1")).unwrap(),
            [at(Form::Saved, &[0]), at(Form::Layout, &[0])],
            "the tag fits too"
        );
        assert!(refused(&two, Some("r.example/c:v3")).contains("no image r.example/c:v3"));
        assert!(refused(&two, None).contains("r.example/a:v1, r.example/b:v2"));
    }

    #[test]
    fn one_of_several_images_is_never_taken_silently() {
        let unnamed = listing(&[&[]], &[&[], &[]]);
        assert!(refused(&unnamed, Some("r.example/a:v1")).contains("3 images"));
        let single = listing(&[&[]], &[&[]]);
        assert_eq!(chosen(&single, Some("r.example/a:v1")).unwrap().len(), 2);
        assert!(chosen(&single, None).is_err(), "no name at all");
        let platforms = listing(&[&["v1"], &["v1"]], &[]);
        assert_eq!(chosen(&platforms, Some("r.example/a:v1")).unwrap(), [at(Form::Layout, &[0, 1])]);
    }

    #[test]
    fn a_digest_finds_its_image() {
        let two = listing(&[&["r.example/a:v1"], &["r.example/a:v1"]], &[]);
        let wanted = format!("r.example/a:v1@{}", Digest([1; 32]));
        assert_eq!(chosen(&two, Some(&wanted)).unwrap(), [at(Form::Layout, &[1])]);
        let other = format!("r.example/a@{}", Digest([9; 32]));
        assert_eq!(chosen(&two, Some(&other)).unwrap(), [at(Form::Layout, &[0, 1])], "the digest is checked later");
    }
}
