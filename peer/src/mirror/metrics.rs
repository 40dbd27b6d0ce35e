//! The counters of the mirror.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use shoal_service::metrics::Metrics;
use std::fmt::{self, Write};

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Base,
    Manifest,
    Blob,
    Referrers,
    Tags,
    Other,
}

impl EncodeLabelValue for Target {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(match self {
            Self::Base => "base",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Referrers => "referrers",
            Self::Tags => "tags",
            Self::Other => "other",
        })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Hit,
    /// The mirror lacks the object. The client continues with the registry.
    Miss,
    /// The request is invalid.
    Refused,
    /// The mirror cannot answer at present.
    Unavailable,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    what: Target,
    outcome: Outcome,
}

/// The counters. Clones share them.
#[derive(Clone)]
pub struct MirrorMetrics {
    requests: Family<RequestLabels, Counter>,
    pub sent_bytes: Counter,
    pub cut: Counter,
}

impl MirrorMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.counters("shoal_mirror_requests", "Requests to the registry mirror"),
            sent_bytes: metrics.counter("shoal_mirror_sent_bytes", "Bytes of blobs and manifests that the mirror sent"),
            cut: metrics.counter("shoal_mirror_cut", "Blobs that the mirror cut short"),
        }
    }

    pub fn count(&self, what: Target, outcome: Outcome) {
        self.requests.get_or_create(&RequestLabels { what, outcome }).inc();
    }
}
