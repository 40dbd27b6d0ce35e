//! Gates: Prometheus queries that end with a comparison.
//!
//! Invariant: a gate passes only if the query returns data and every sample meets the comparison. NaN is no data: it is
//! what a canary without traffic divides, so it proves neither health nor a fault.

use super::machine::Gate;
use crate::errors::with_sources;
use serde::Deserialize;
use shoal_service::http_client::{Client, ClientError};
use std::fmt::Write;

/// A query without a usable comparison at its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("query `{0}` does not end with a comparison to a number; write one such as `< 0.05`")]
pub(crate) struct ThresholdError(String);

/// Why a gate gives no usable answer.
#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{server} answered {status}: {source}")]
    Answer { server: String, status: u16, source: AnswerError },
    #[error("the query returns no data")]
    NoData,
    /// The labels begin with a space, unless there are none.
    #[error("the query returns NaN{0}, which counts as no data; filter it, e.g. with `>= 0 or vector(0)`")]
    NotANumber(String),
}

/// Why an answer of Prometheus has no samples.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("the body is not an answer of Prometheus: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Refused(String),
    #[error("invalid number `{0}`")]
    Number(String),
    #[error("the result is a {0}, not a vector or scalar")]
    Kind(String),
}

/// A query and the comparison that every sample must meet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Threshold {
    query: String,
    compare: &'static str,
    limit: f64,
}

/// Longer comparisons come first, so that `<=` is not read as `<`.
const COMPARISONS: [&str; 6] = ["<=", ">=", "==", "!=", "<", ">"];

impl Threshold {
    /// Parses `QUERY < NUMBER`.
    ///
    /// # Errors
    /// Returns an error if the text does not end with a comparison and a number. NaN is not a number: no value meets
    /// `< NaN`, and every value meets `!= NaN`.
    pub(crate) fn parse(text: &str) -> Result<Self, ThresholdError> {
        let invalid = || ThresholdError(text.to_string());
        let number = text.trim_end().rsplit(['<', '>', '=', ' ']).next().unwrap_or_default();
        let limit: f64 = number.parse().map_err(|_| invalid())?;
        if limit.is_nan() {
            return Err(invalid());
        }
        let rest = text.trim_end().strip_suffix(number).unwrap_or(text).trim_end();
        let compare = COMPARISONS.into_iter().find(|compare| rest.ends_with(compare)).ok_or_else(invalid)?;
        let query = rest.strip_suffix(compare).unwrap_or(rest).trim().to_string();
        if query.is_empty() { Err(invalid()) } else { Ok(Self { query, compare, limit }) }
    }

    fn is_met(&self, value: f64) -> bool {
        match self.compare {
            "<" => value < self.limit,
            "<=" => value <= self.limit,
            ">" => value > self.limit,
            ">=" => value >= self.limit,
            "==" => value == self.limit,
            _ => value != self.limit && !value.is_nan(),
        }
    }
}

/// An answer of Prometheus' HTTP API.
#[derive(Deserialize)]
struct QueryAnswer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<QueryData>,
}

#[derive(Deserialize)]
struct QueryData {
    #[serde(rename = "resultType")]
    kind: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct VectorRow {
    #[serde(default)]
    metric: serde_json::Map<String, serde_json::Value>,
    /// Time and value, as Prometheus writes them.
    value: (f64, String),
}

/// One value and the labels it belongs to.
#[derive(Debug, PartialEq)]
struct Sample {
    labels: String,
    value: f64,
}

fn number(text: &str) -> Result<f64, AnswerError> {
    text.parse().map_err(|_| AnswerError::Number(text.to_string()))
}

fn samples(body: &[u8]) -> Result<Vec<Sample>, AnswerError> {
    let answer: QueryAnswer = serde_json::from_slice(body)?;
    let data = match answer.data {
        Some(data) if answer.status == "success" => data,
        _ => return Err(AnswerError::Refused(if answer.error.is_empty() { answer.status } else { answer.error })),
    };
    match data.kind.as_str() {
        "vector" => {
            let rows: Vec<VectorRow> = serde_json::from_value(data.result)?;
            let labels = |row: &VectorRow| serde_json::to_string(&row.metric).unwrap_or_default();
            rows.iter().map(|row| Ok(Sample { labels: labels(row), value: number(&row.value.1)? })).collect()
        }
        "scalar" => {
            let (_, text): (f64, String) = serde_json::from_value(data.result)?;
            Ok(vec![Sample { labels: String::new(), value: number(&text)? }])
        }
        other => Err(AnswerError::Kind(other.to_string())),
    }
}

/// Asks all queries in order. A condition that is not met counts before a query without a usable answer.
pub(super) async fn ask(server: &str, queries: &[String]) -> Gate {
    let mut undecided = None;
    for query in queries {
        match ask_one(server, query).await {
            Ok(None) => {}
            Ok(Some(failure)) => return Gate::Failed(failure),
            Err(error) if undecided.is_none() => {
                undecided = Some(format!("gate `{query}` is undecided: {}", with_sources(&error)));
            }
            Err(_) => {}
        }
    }
    undecided.map_or(Gate::Passed, Gate::Undecided)
}

/// Returns which sample does not meet the comparison, if one does not.
async fn ask_one(server: &str, text: &str) -> Result<Option<String>, GateError> {
    let threshold = Threshold::parse(text)?;
    let client = Client::new(server, None)?;
    let path = format!("/api/v1/query?query={}", escape(&threshold.query));
    let (status, body) = client.answer(&path).await?;
    let samples = samples(&body).map_err(|source| GateError::Answer { server: server.to_string(), status, source })?;
    compare(text, &threshold, &samples)
}

/// Returns which sample does not meet the comparison, if one does not. Such a number counts before NaN.
fn compare(text: &str, threshold: &Threshold, samples: &[Sample]) -> Result<Option<String>, GateError> {
    if samples.is_empty() {
        return Err(GateError::NoData);
    }
    let (nan, numbers): (Vec<&Sample>, Vec<&Sample>) = samples.iter().partition(|sample| sample.value.is_nan());
    let unmet = numbers.into_iter().find(|sample| !threshold.is_met(sample.value));
    match (unmet, nan.first()) {
        (Some(sample), _) => Ok(Some(format!("gate `{text}` is not met: {} {}", sample.value, sample.labels))),
        (None, Some(sample)) if sample.labels.is_empty() => Err(GateError::NotANumber(String::new())),
        (None, Some(sample)) => Err(GateError::NotANumber(format!(" {}", sample.labels))),
        (None, None) => Ok(None),
    }
}

/// Percent-encodes a text for a query.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}"); // writing to a string cannot fail
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read() {
        let read = |text: &str| Threshold::parse(text).map(|found| (found.query, found.compare, found.limit));
        assert_eq!(read("up == 1").unwrap(), ("up".into(), "==", 1.0));
        assert_eq!(read("sum(rate(e{a=\"<3\"}[1m]))<0.05").unwrap(), ("sum(rate(e{a=\"<3\"}[1m]))".into(), "<", 0.05));
        assert_eq!(read("min(x) >= -2e3 ").unwrap(), ("min(x)".into(), ">=", -2000.0));
        assert_eq!(read("x < +Inf").unwrap(), ("x".into(), "<", f64::INFINITY));
        for bad in ["", "up", "< 5", "up <", "up ~ 5", "a < b", "up < NaN", "up != nan", "up == -nan"] {
            assert!(Threshold::parse(bad).is_err(), "{bad}");
        }
        let threshold = Threshold::parse("x != 1").unwrap();
        assert!(threshold.is_met(2.0) && !threshold.is_met(1.0));
        assert!(!Threshold::parse("x < 1").unwrap().is_met(f64::NAN));
    }

    #[test]
    fn nan_does_not_pass_and_says_so() {
        let of = |values: &[f64]| -> Vec<Sample> {
            let sample = |(place, value): (usize, &f64)| Sample { labels: format!("{{\"n\":{place}}}"), value: *value };
            values.iter().enumerate().map(sample).collect()
        };
        for query in ["x < 1", "x > 1", "x != 1", "x == 1", "x <= 1", "x >= 1"] {
            let threshold = Threshold::parse(query).unwrap();
            let error = compare(query, &threshold, &of(&[f64::NAN])).unwrap_err().to_string();
            assert!(error.contains("NaN") && error.contains("\"n\":0"), "{error}");
        }
        let threshold = Threshold::parse("x < 1").unwrap();
        assert!(compare("x < 1", &threshold, &of(&[0.5, f64::NAN])).is_err(), "one sample proves nothing");
        let failure = compare("x < 1", &threshold, &of(&[f64::NAN, 2.0])).unwrap();
        assert!(failure.unwrap().contains("not met: 2 {\"n\":1}"), "a real breach counts");
        assert_eq!(compare("x < 1", &threshold, &of(&[f64::NEG_INFINITY, 0.0])).unwrap(), None);
        assert!(compare("x < 1", &threshold, &of(&[f64::INFINITY])).unwrap().is_some());
        assert!(matches!(compare("x < 1", &threshold, &[]), Err(GateError::NoData)));
    }

    #[test]
    fn answers_are_read() {
        let vector = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"job":"a"},"value":[1.5,"0.25"]},{"metric":{},"value":[1.5,"NaN"]}]}}"#;
        let found = samples(vector).unwrap();
        assert_eq!(found[0], Sample { labels: r#"{"job":"a"}"#.into(), value: 0.25 });
        assert!(found[1].value.is_nan());
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1.5,"3"]}}"#;
        assert_eq!(samples(scalar).unwrap(), [Sample { labels: String::new(), value: 3.0 }]);
        for bad in [
            &br#"{"status":"error","errorType":"bad_data","error":"parse error"}"#[..],
            br#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#,
            b"no json",
        ] {
            assert!(samples(bad).is_err());
        }
        assert_eq!(escape("a{b=\"c d\"}"), "a%7Bb%3D%22c%20d%22%7D");
    }
}
