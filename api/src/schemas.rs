//! Schemas of values whose types are in `shoal-proto`, which knows no schemas.
//!
//! Invariant: each type here has the same JSON as its namesake in `shoal-proto`. `tests/openapi.rs` compares them with
//! what servers answer.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

macro_rules! text_schema {
    ($name:ty, $title:literal, $pattern:literal, $example:literal) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                $title.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

pub(crate) struct JobId;
pub(crate) struct ContentId;
pub(crate) struct NodeId;
pub(crate) struct Digest;

text_schema!(JobId, "JobId", "^[0-9a-f]{32}$", "00112233445566778899aabbccddeeff");
text_schema!(
    ContentId,
    "ContentId",
    "^[0-9a-f]{64}$",
    "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
);
text_schema!(NodeId, "NodeId", "^[0-9a-f]{64}$", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
text_schema!(
    Digest,
    "Digest",
    "^sha256:[0-9a-f]{64}$",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
);
text_schema!(crate::units::Span, "Span", "^[0-9.]+ *(us|ms|s|m|h|d)$", "10s");

impl JsonSchema for crate::units::Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A rate in bits or bytes per second, or `unlimited`. A bare number is Mbit/s.",
            "anyOf": [
                { "type": "string", "pattern": "^([0-9.]+ *[kMG]?(bit|B)?(/s)?|unlimited)$" },
                { "type": "integer", "minimum": 0 },
            ],
            "examples": ["200 Mbit/s"],
        })
    }
}

/// How hosts treat a content. The kind also sets the priority class.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) enum Kind {
    Gslb,
    Config,
    Image,
    Blob,
}

/// An order about a content that hosts have.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) enum Order {
    Demote,
    Promote,
}

/// Whether the tracker sees a host.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) enum Presence {
    Up,
    Away,
}

/// Payload bytes by the tier of their source.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) struct TierBytes {
    /// Copied from pieces that the host had.
    local: u64,
    /// From rack peers.
    rack: u64,
    /// From other racks of the site.
    site: u64,
    /// From other sites of the region.
    region: u64,
    /// From a seeder.
    seeder: u64,
}

/// A job, folded per rack.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) struct RackRollup {
    /// `region/site/rack`.
    rack: String,
    /// Hosts that the job targets.
    hosts: u32,
    /// Hosts that have every piece.
    has: u32,
    /// Hosts that switched to the version.
    active: u32,
    /// Hosts that failed.
    failed: u32,
    /// Hosts that the tracker does not see.
    away: u32,
    /// Pieces verified, over all hosts of the rack.
    pieces: u64,
    /// Payload bytes received over all hosts of the rack.
    tiers: TierBytes,
    /// Hosts that keep the content without switching to it. Counted in `has` too.
    #[schemars(default)]
    stored: u32,
    /// Hosts that returned to their former version.
    #[schemars(default)]
    rolled_back: u32,
}
