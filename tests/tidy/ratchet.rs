//! Limits that only fall. Each one is today's value of something that should be smaller.
//!
//! Lower a limit when the value has become smaller. Never raise one.

/// A count with its limit.
pub(crate) struct Ratchet {
    pub(crate) what: &'static str,
    pub(crate) limit: f64,
    pub(crate) goal: f64,
}

impl Ratchet {
    /// Prints the value; fails when it is above the limit.
    #[allow(clippy::print_stdout, reason = "`cargo test --test tidy -- --nocapture` shows the figures")]
    pub(crate) fn check(&self, value: f64, where_: &[String]) {
        let Self { what, limit, goal } = self;
        println!("{what}: {value:.2} (limit {limit}, goal {goal})");
        // The slack allows for the rounding of the limit.
        assert!(value <= limit + 0.005, "{what}: {value:.2} is above the limit {limit}:\n  {}", where_.join("\n  "));
    }
}

const fn ratchet(what: &'static str, limit: f64, goal: f64) -> Ratchet {
    Ratchet { what, limit, goal }
}

pub(crate) const LONG_SENTENCES: Ratchet = ratchet("docs: sentences over 35 words, %", 6.0, 6.0);
pub(crate) const JOINED_SENTENCES: Ratchet = ratchet("docs: sentences with `;` or `:`, %", 25.0, 25.0);
pub(crate) const ARCHAIC_DOCS: Ratchet = ratchet("docs: archaic idioms per 1,000 words", 0.3, 0.3);
pub(crate) const ARCHAIC_COMMENTS: Ratchet = ratchet("Rust comments: archaic idioms per 1,000 words", 0.3, 0.3);
pub(crate) const FORBIDDEN_NAMES: Ratchet = ratchet("Rust: forbidden names", 0.0, 0.0);
pub(crate) const GIVES: Ratchet = ratchet("Rust: doc comments that begin with `Gives`", 0.0, 0.0);
pub(crate) const FUNCTION_P99: Ratchet = ratchet("Rust: 99th percentile of function lengths, lines", 60.0, 60.0);
pub(crate) const FILE_LINES: Ratchet = ratchet("Rust: longest file, lines", 700.0, 700.0);
pub(crate) const WIDE_COMMENTS: Ratchet = ratchet("Rust: comment lines over 120 columns", 0.0, 0.0);
pub(crate) const WIDE_MARKDOWN: Ratchet = ratchet("Markdown: lines over 120 columns", 0.0, 0.0);
pub(crate) const PUB_SUPER: Ratchet = ratchet("Rust: `pub(super)`", 151.0, 200.0);
pub(crate) const STRING_ERRORS: Ratchet = ratchet("Rust: `Result<_, String>`", 0.0, 0.0);
pub(crate) const FLATTENED_ERRORS: Ratchet = ratchet("Rust: `map_err(|e| e.to_string())`", 0.0, 0.0);
pub(crate) const CIRCLES: Ratchet = ratchet("Rust: modules of a crate that import each other in a circle", 0.0, 0.0);
