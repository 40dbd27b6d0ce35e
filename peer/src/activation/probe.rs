//! Probes: repeated HTTP requests that tell whether a service is healthy.
//!
//! Invariant: each request has a time limit, so a silent service counts as unhealthy.

use super::settings::Probe;
use shoal_service::http_client::{Client, ClientError};
use tokio::time::{Instant, sleep, timeout};

/// Why a service counts as unhealthy.
#[derive(Debug, thiserror::Error)]
#[error("probe {url} failed")]
pub(crate) struct ProbeError {
    url: String,
    source: Unhealthy,
}

#[derive(Debug, thiserror::Error)]
enum Unhealthy {
    #[error("the URL is not of the form http://host:port/path")]
    Url,
    #[error("the request failed")]
    Request(#[from] ClientError),
    #[error("no answer within {0}")]
    Timeout(shoal_service::units::Span),
    #[error("the status is {actual} instead of {expected}")]
    Status { actual: u16, expected: u16 },
    #[error("the answer does not contain `{0}`")]
    Text(String),
}

async fn request(probe: &Probe) -> Result<(), Unhealthy> {
    let (server, path) = probe.server_and_path().ok_or(Unhealthy::Url)?;
    let client = Client::new(&server, None)?;
    let answer = timeout(probe.timeout.0, client.answer(&path)).await;
    let (status, body) = answer.map_err(|_| Unhealthy::Timeout(probe.timeout))??;
    if status != probe.expect {
        return Err(Unhealthy::Status { actual: status, expected: probe.expect });
    }
    if !probe.contains.is_empty() && !String::from_utf8_lossy(&body).contains(&probe.contains) {
        return Err(Unhealthy::Text(probe.contains.clone()));
    }
    Ok(())
}

/// Waits until the service is healthy, for at most `probe.within`.
///
/// # Errors
/// Returns the last failure if the service stays unhealthy.
pub(crate) async fn until_healthy(probe: &Probe) -> Result<(), ProbeError> {
    let end = Instant::now() + probe.within.0;
    loop {
        let Err(source) = request(probe).await else { return Ok(()) };
        if Instant::now() + probe.interval.0 > end {
            return Err(ProbeError { url: probe.url.clone(), source });
        }
        sleep(probe.interval.0).await;
    }
}

/// Watches a healthy service. Returns after `probe.failures` failures in a row.
pub(crate) async fn until_unhealthy(probe: &Probe) -> ProbeError {
    let mut failures = 0;
    loop {
        sleep(probe.interval.0).await;
        match request(probe).await {
            Ok(()) => failures = 0,
            Err(source) => {
                failures += 1;
                if failures >= probe.failures {
                    return ProbeError { url: probe.url.clone(), source };
                }
            }
        }
    }
}
