//! Gates asked of Prometheus: a query, a comparison, a number.
//!
//! Invariant: a gate passes only if there is data and every sample of it compares as it should.

use super::machine::Gate;
use serde::Deserialize;
use shoal_service::http_client::Client;
use std::fmt::Write;

/// A query and what its result must be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Threshold {
    query: String,
    compare: &'static str,
    limit: f64,
}

/// Longer ones first, so that `<=` is not read as `<`.
const COMPARISONS: [&str; 6] = ["<=", ">=", "==", "!=", "<", ">"];

impl Threshold {
    /// Reads `QUERY < NUMBER`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` does not end with a comparison such as `< 0.05`");
        let number = text.trim_end().rsplit(['<', '>', '=', ' ']).next().unwrap_or_default();
        let limit: f64 = number.parse().map_err(|_| bad())?;
        let rest = text.trim_end().strip_suffix(number).unwrap_or(text).trim_end();
        let compare = COMPARISONS.into_iter().find(|compare| rest.ends_with(compare)).ok_or_else(bad)?;
        let query = rest.strip_suffix(compare).unwrap_or(rest).trim().to_string();
        if query.is_empty() { Err(bad()) } else { Ok(Self { query, compare, limit }) }
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

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Sample {
    #[serde(default)]
    metric: serde_json::Map<String, serde_json::Value>,
    value: (f64, String),
}

/// The samples of an answer: what each is of, and its value.
fn samples(body: &[u8]) -> Result<Vec<(String, f64)>, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let data = match answer.data {
        Some(data) if answer.status == "success" => data,
        _ => return Err(if answer.error.is_empty() { answer.status } else { answer.error }),
    };
    let number = |text: &str| text.parse::<f64>().map_err(|error| format!("`{text}`: {error}"));
    match data.kind.as_str() {
        "vector" => {
            let rows: Vec<Sample> = serde_json::from_value(data.result).map_err(|error| error.to_string())?;
            let named = |row: &Sample| serde_json::to_string(&row.metric).unwrap_or_default();
            rows.iter().map(|row| Ok((named(row), number(&row.value.1)?))).collect()
        }
        "scalar" => {
            let (_, text): (f64, String) = serde_json::from_value(data.result).map_err(|error| error.to_string())?;
            Ok(vec![(String::new(), number(&text)?)])
        }
        other => Err(format!("the result is a {other}, not a vector or scalar")),
    }
}

/// Asks all; the first that is not met counts.
pub(crate) async fn ask(server: &str, queries: &[String]) -> Gate {
    for text in queries {
        match ask_one(server, text).await {
            Ok(None) => {}
            Ok(Some(gate_failed)) => return Gate::Failed(gate_failed),
            Err(why) => return Gate::Undecided(format!("cannot tell whether `{text}`: {why}")),
        }
    }
    Gate::Passed
}

async fn ask_one(server: &str, text: &str) -> Result<Option<String>, String> {
    let threshold = Threshold::parse(text)?;
    let client = Client::new(server, None).map_err(|error| error.to_string())?;
    let path = format!("/api/v1/query?query={}", escape(&threshold.query));
    let (status, body) = client.answer(&path).await.map_err(|error| error.to_string())?;
    let samples = samples(&body).map_err(|error| format!("{server} answered {status}: {error}"))?;
    if samples.is_empty() {
        return Err("there is no data".into());
    }
    let broken = samples.iter().find(|(_, value)| !threshold.is_met(*value));
    Ok(broken.map(|(metric, value)| format!("`{text}` is not met: {value} {metric}")))
}

/// Percent-encodes all but what may stand in a query.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
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
        for bad in ["", "up", "< 5", "up <", "up ~ 5", "a < b"] {
            assert!(Threshold::parse(bad).is_err(), "{bad}");
        }
        let threshold = Threshold::parse("x != 1").unwrap();
        assert!(threshold.is_met(2.0) && !threshold.is_met(1.0));
        assert!(!Threshold::parse("x < 1").unwrap().is_met(f64::NAN));
    }

    #[test]
    fn answers_are_read() {
        let vector = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"job":"a"},"value":[1.5,"0.25"]},{"metric":{},"value":[1.5,"NaN"]}]}}"#;
        let found = samples(vector).unwrap();
        assert_eq!(found[0], (r#"{"job":"a"}"#.into(), 0.25));
        assert!(found[1].1.is_nan());
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1.5,"3"]}}"#;
        assert_eq!(samples(scalar).unwrap(), [(String::new(), 3.0)]);
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
