//! The repository's own rules: who may depend on whom, sizes, words, sentences, leftovers.
//!
//! `cargo test --test tidy -- --nocapture` prints the figures. Where to look: crates and their modules in [`crates`],
//! code in [`code`], language in [`prose`], the limits in [`ratchet`].

mod code;
mod crates;
mod files;
mod prose;
mod ratchet;

/// Fails with every place that breaks a rule.
fn none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}
