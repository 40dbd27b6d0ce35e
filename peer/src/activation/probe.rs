//! Asks a service how it is.

use super::settings::Probe;
use shoal_service::http_client::Client;
use tokio::time::{Instant, sleep, timeout};

/// Asks once; an error says in words what is wrong.
async fn ask(probe: &Probe) -> Result<(), String> {
    let (server, path) = probe.parts().ok_or("it has no address")?;
    let client = Client::new(&server, None).map_err(|error| error.to_string())?;
    let answer = timeout(probe.timeout.0, client.answer(&path)).await.map_err(|_| "no answer in time")?;
    let (status, body) = answer.map_err(|error| error.to_string())?;
    if status != probe.expect {
        return Err(format!("answered {status}, not {}", probe.expect));
    }
    if !probe.contains.is_empty() && !String::from_utf8_lossy(&body).contains(&probe.contains) {
        return Err(format!("the answer does not hold `{}`", probe.contains));
    }
    Ok(())
}

/// Asks until the service is well, for as long as that may take.
pub(crate) async fn until_well(probe: &Probe) -> Result<(), String> {
    let end = Instant::now() + probe.within.0;
    loop {
        let Err(why) = ask(probe).await else { return Ok(()) };
        if Instant::now() + probe.interval.0 > end {
            return Err(format!("probe {}: {why}", probe.url));
        }
        sleep(probe.interval.0).await;
    }
}

/// Watches a service that was well; ends when it no longer is, and says why.
pub(crate) async fn until_ill(probe: &Probe) -> String {
    let mut bad = 0;
    loop {
        sleep(probe.interval.0).await;
        match ask(probe).await {
            Ok(()) => bad = 0,
            Err(why) => {
                bad += 1;
                if bad >= probe.failures {
                    return format!("probe {}: {why}", probe.url);
                }
            }
        }
    }
}
