//! Follows a job and shows its progress: bars on a terminal, lines elsewhere, JSON lines for programs.
//!
//! Invariant: progress goes to standard error. Only summaries and JSON go to standard output.

use super::{Outcome, output};
use anyhow::bail;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_api::jobs::{HostLine, HostTotals, JobAccepted, JobPhase, JobStatus};
use shoal_proto::announcement::{Kind, Order};
use shoal_proto::ids::JobId;
use shoal_proto::report::TierBytes;
use shoal_service::http_client::Client;
use shoal_service::units::{ByteSize, Span};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The form in which progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    Bars,
    Lines,
    JsonLines,
    Silent,
}

impl Display {
    /// Returns JSON lines if requested, else bars on a terminal and lines elsewhere.
    pub(crate) fn new(json: bool) -> Self {
        match std::io::stderr().is_terminal() {
            _ if json => Self::JsonLines,
            true => Self::Bars,
            false => Self::Lines,
        }
    }
}

/// Whether and how long a command waits for the jobs that it started.
#[derive(Debug, clap::Args)]
pub(crate) struct Waiting {
    /// Wait until every host is done or has failed
    #[arg(long)]
    wait: bool,
    /// Time after which --wait ends with exit code 4
    #[arg(long, default_value = "1h", requires = "wait")]
    timeout: Span,
}

impl Waiting {
    /// With `--wait`, follows the started jobs or rollouts one after another. Returns the worst outcome.
    pub(crate) async fn for_each<T>(
        &self,
        begun: &[T],
        follow: impl AsyncFn(&T, Duration) -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<Outcome> {
        let (since, mut worst) = (Instant::now(), Outcome::Ok);
        for one in begun.iter().filter(|_| self.wait) {
            worst = worst.max(follow(one, self.timeout.0.saturating_sub(since.elapsed())).await?);
            if worst == Outcome::Interrupted {
                break;
            }
        }
        Ok(worst)
    }

    /// Like `for_each`, for jobs.
    pub(crate) async fn for_jobs(&self, client: &Client, jobs: &[JobId], json: bool) -> anyhow::Result<Outcome> {
        let one = async |job: &JobId, left| Ok(follow(client, job, Display::new(json), left).await?.0);
        self.for_each(jobs, one).await
    }
}

/// Prints the id of a started job. With `--wait`, follows the job to its end.
pub(crate) async fn begun(
    client: &Client,
    pushed: &JobAccepted,
    waiting: &Waiting,
    json: bool,
) -> anyhow::Result<Outcome> {
    if json {
        output::json_line(pushed)?;
    } else {
        output::line(&format!("job {}", pushed.job));
    }
    waiting.for_jobs(client, std::slice::from_ref(&pushed.job), json).await
}

/// Racks that have a bar. A larger number does not fit on a terminal.
const RACKS_SHOWN: usize = 32;
/// Least interval between two lines of one phase.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Follows a job to its end or to the timeout. Returns the outcome and the last status.
///
/// # Errors
///
/// The seeder is unreachable, or the job failed before it was distributed.
pub(crate) async fn follow(
    client: &Client,
    job: &JobId,
    display: Display,
    timeout: Duration,
) -> anyhow::Result<(Outcome, JobStatus)> {
    let until = tokio::time::Instant::now() + timeout;
    let mut view = View::new(display);
    let mut last: Option<JobStatus> = None;
    let path = format!("/v1/jobs/{job}/events");
    let ended = tokio::time::timeout_at(until, async {
        let mut lines = client.lines(&path).await?;
        while let Some(status) = lines.next::<JobStatus>().await? {
            view.show(&status)?;
            let done = status.is_final();
            last = Some(status);
            if done {
                break;
            }
        }
        anyhow::Ok(())
    });
    let late = tokio::select! {
        ended = ended => match ended {
            Ok(result) => {
                result?;
                false
            }
            Err(_) => true,
        },
        _ = tokio::signal::ctrl_c() => {
            view.clear();
            output::note("the job continues; `shoal status` shows its progress");
            let Some(status) = last else {
                bail!("the seeder has sent no status of job {job} yet; `shoal status {job}` shows its progress");
            };
            return Ok((Outcome::Interrupted, status));
        }
    };
    view.clear();
    let Some(status) = last else {
        bail!("the seeder sent no status of job {job}; `shoal status {job}` shows its progress")
    };
    if status.phase == JobPhase::Failed {
        bail!("{} {}: {}", status.name, status.version, status.error);
    }
    if display != Display::JsonLines && display != Display::Silent {
        summary(&status);
    }
    let HostTotals { failed, rolled_back, away, .. } = status.totals();
    let outcome = match () {
        () if late || !status.is_final() => Outcome::Unfinished,
        () if failed + rolled_back > 0 => Outcome::HostsFailed,
        () if away > 0 => Outcome::Unfinished,
        () => Outcome::Ok,
    };
    Ok((outcome, status))
}

/// The bytes received by tier, without empty tiers.
pub(crate) fn tiers(tiers: &TierBytes) -> String {
    let parts = [
        ("local", tiers.local),
        ("rack", tiers.rack),
        ("site", tiers.site),
        ("region", tiers.region),
        ("seeder", tiers.seeder),
    ];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", ByteSize(*bytes).rounded()))
        .collect();
    shown.join(", ")
}

/// The state of a host that has completed a push.
fn done_state(status: &JobStatus) -> &'static str {
    if status.kind == Kind::Image { "prewarmed" } else { "active" }
}

/// The hosts that returned to their former version, before the next count.
fn rolled_back(status: &JobStatus) -> String {
    match status.totals().rolled_back {
        0 => String::new(),
        // The hosts that failed went back too, and count as failed.
        all => format!("{} rolled back, ", all.saturating_sub(status.failed_hosts())),
    }
}

/// Prints a job's totals, its racks, the first failures, and the hosts that failed, went back or are away.
pub(crate) fn summary(status: &JobStatus) {
    let HostTotals { hosts, has, active, away, .. } = status.totals();
    let (done, what) = match status.order {
        Some(Order::Demote) => (active, "demoted"),
        _ if status.staged => (has, "staged"),
        _ => (active, done_state(status)),
    };
    let stored = match status.totals().stored {
        0 => String::new(),
        stored => format!("{stored} stored, "),
    };
    output::line(&format!(
        "{} {}: {done} of {hosts} hosts {what}, {stored}{} failed, {}{away} away ({} in {:.1} s)",
        status.name,
        status.version,
        status.failed_hosts(),
        rolled_back(status),
        ByteSize(status.size).rounded(),
        status.elapsed_s,
    ));
    for rack in &status.racks {
        let ratio = rack.tiers.imported() as f64 / status.size.max(1) as f64;
        output::line(&format!(
            "  {}: {} of {} {what}, imported {:.3}x ({})",
            rack.rack,
            if status.staged { rack.has } else { rack.active },
            rack.hosts,
            ratio,
            tiers(&rack.tiers),
        ));
    }
    status.failures.iter().for_each(|failure| output::line(&format!("  failed: {failure}")));
    for line in status.lines.iter().filter(|line| has_ended_badly(line)) {
        let away = if line.away { " (away)" } else { "" };
        output::line(&format!("  {}: {}{away} {}", line.host, line.state, line.detail));
    }
}

/// Whether a host failed, returned to its former version or is away.
pub(crate) fn has_ended_badly(line: &HostLine) -> bool {
    line.away || line.state.starts_with("failed") || line.state == "rolled-back"
}

struct View {
    display: Display,
    bars: Option<(MultiProgress, ProgressBar, Vec<ProgressBar>)>,
    /// Time and phase of the last printed line.
    printed: Option<(Instant, JobPhase)>,
}

impl View {
    fn new(display: Display) -> Self {
        let bars = (display == Display::Bars).then(|| {
            let all = MultiProgress::new();
            let head = all.add(ProgressBar::no_length());
            (all, head, Vec::new())
        });
        Self { display, bars, printed: None }
    }

    fn show(&mut self, status: &JobStatus) -> anyhow::Result<()> {
        match self.display {
            Display::Silent => Ok(()),
            Display::JsonLines => output::json_line(status),
            Display::Bars => {
                self.draw(status);
                Ok(())
            }
            Display::Lines => {
                let due = self.printed.is_none_or(|(at, phase)| at.elapsed() >= LINE_EVERY || phase != status.phase);
                if due {
                    self.printed = Some((Instant::now(), status.phase));
                    output::note(&progress_line(status));
                }
                Ok(())
            }
        }
    }

    fn draw(&mut self, status: &JobStatus) {
        let Some((all, head, racks)) = &mut self.bars else { return };
        let (done, total) = measure(status);
        head.set_style(style("{prefix:<12} {bar:30} {percent:>3}% {msg}"));
        head.set_prefix(phase_name(status.phase));
        head.set_length(total.max(1));
        head.set_position(done);
        head.set_message(details(status));
        for (place, rack) in status.racks.iter().enumerate().take(RACKS_SHOWN) {
            if racks.len() <= place {
                racks.push(all.add(ProgressBar::no_length()));
                racks[place].set_style(style("  {prefix:<24} {bar:16} {percent:>3}% {msg}"));
            }
            let bar = &racks[place];
            bar.set_prefix(rack.rack.clone());
            bar.set_length((u64::from(rack.hosts) * u64::from(status.pieces)).max(1));
            bar.set_position(rack.pieces);
            let state = done_state(status);
            bar.set_message(format!("{}/{} {state}  {}", rack.active, rack.hosts, tiers(&rack.tiers)));
        }
    }

    fn clear(&mut self) {
        if let Some((all, head, racks)) = &self.bars {
            head.finish_and_clear();
            racks.iter().for_each(ProgressBar::finish_and_clear);
            let _ = all.clear(); // a closed terminal has nothing to clear
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Done and total: bytes while the seeder ingests, pieces while hosts receive.
fn measure(status: &JobStatus) -> (u64, u64) {
    if matches!(status.phase, JobPhase::Pulling | JobPhase::Ingesting | JobPhase::Waiting) {
        return (status.ingested, status.size);
    }
    let HostTotals { hosts, .. } = status.totals();
    (status.racks.iter().map(|rack| rack.pieces).sum(), u64::from(hosts) * u64::from(status.pieces))
}

fn details(status: &JobStatus) -> String {
    if matches!(status.phase, JobPhase::Pulling | JobPhase::Ingesting | JobPhase::Waiting) {
        return format!("{} of {}", ByteSize(status.ingested).rounded(), ByteSize(status.size).rounded());
    }
    let HostTotals { hosts, active, failed, .. } = status.totals();
    let eta = status.eta_s.map_or_else(String::new, |eta| format!(", {eta:.0} s left"));
    let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    format!("{active}/{hosts} hosts{failed}{eta}  {}", tiers(&status.tiers))
}

fn progress_line(status: &JobStatus) -> String {
    let (done, total) = measure(status);
    let percent = if total == 0 { 0.0 } else { done as f64 * 100.0 / total as f64 };
    let phase = phase_name(status.phase);
    format!("{} {} {phase} {percent:.0}%  {}", status.name, status.version, details(status))
}

fn phase_name(phase: JobPhase) -> &'static str {
    match phase {
        JobPhase::Pulling => "pulling",
        JobPhase::Ingesting => "ingesting",
        JobPhase::Waiting => "waiting",
        JobPhase::Distributing => "distributing",
        JobPhase::Done => "done",
        JobPhase::Failed => "failed",
    }
}
