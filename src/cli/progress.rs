//! Shows a job as it goes: bars on a terminal, plain lines elsewhere, JSON lines for programs.

use super::{Outcome, output};
use anyhow::bail;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_api::jobs::{HostTotals, JobAccepted, JobPhase, JobStatus};
use shoal_proto::announcement::{Kind, Order};
use shoal_proto::ids::JobId;
use shoal_proto::report::TierBytes;
use shoal_service::http_client::Client;
use shoal_service::units::{ByteSize, Span};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    Bars,
    Lines,
    JsonLines,
    Silent,
}

impl Display {
    /// JSON where that is asked for; else bars on a terminal, lines elsewhere.
    pub(crate) fn new(json: bool) -> Self {
        match std::io::stderr().is_terminal() {
            _ if json => Self::JsonLines,
            true => Self::Bars,
            false => Self::Lines,
        }
    }
}

/// Whether a command stays until what it began has ended.
#[derive(Debug, clap::Args)]
pub(crate) struct Waiting {
    /// Wait until every host is done or has failed
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "1h", requires = "wait")]
    timeout: Span,
}

impl Waiting {
    /// Follows what was begun, one after another, if that is asked for; gives the worst that any ended with.
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

    /// The same with jobs.
    pub(crate) async fn for_jobs(&self, client: &Client, jobs: &[JobId], json: bool) -> anyhow::Result<Outcome> {
        let one = async |job: &JobId, left| Ok(follow(client, job, Display::new(json), left).await?.0);
        self.for_each(jobs, one).await
    }
}

/// Says which job was begun, and waits for its end if that is asked for.
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

/// Plain lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Follows a job to its end; gives the outcome and the last status.
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
            output::note("the job goes on; `shoal status` shows it");
            return Ok((Outcome::Interrupted, last.map_or_else(|| bail!("nothing was heard of the job"), Ok)?));
        }
    };
    view.clear();
    let Some(status) = last else { bail!("the seeder ended the stream without a word") };
    if status.phase == JobPhase::Failed {
        bail!("{} {}: {}", status.name, status.version, status.error);
    }
    if display != Display::JsonLines && display != Display::Silent {
        summary(&status);
    }
    let HostTotals { failed, away, .. } = status.totals();
    let outcome = match () {
        () if late || !status.is_final() => Outcome::Unfinished,
        () if failed > 0 => Outcome::HostsFailed,
        () if away > 0 => Outcome::Unfinished,
        () => Outcome::Ok,
    };
    Ok((outcome, status))
}

/// Payload by source, in words.
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

/// What hosts are that have done all a job asks of them.
fn done_word(status: &JobStatus) -> &'static str {
    if status.kind == Kind::Image { "warm" } else { "active" }
}

/// What is left to say when a job has ended.
pub(crate) fn summary(status: &JobStatus) {
    let HostTotals { hosts, has, active, failed, away, .. } = status.totals();
    let (done, what) = match status.order {
        Some(Order::Demote) => (active, "demoted"),
        _ if status.staged => (has, "hold it, staged"),
        _ => (active, done_word(status)),
    };
    let held = match status.totals().stored {
        0 => String::new(),
        held => format!("{held} stored, "),
    };
    output::line(&format!(
        "{} {}: {done} of {hosts} hosts {what}, {held}{failed} failed, {away} away; {} in {:.1} s",
        status.name,
        status.version,
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
    for line in status.lines.iter().filter(|line| line.away || line.state.starts_with("failed")) {
        let away = if line.away { " (away)" } else { "" };
        output::line(&format!("  {}: {}{away} {}", line.host, line.state, line.detail));
    }
}

struct View {
    display: Display,
    bars: Option<(MultiProgress, ProgressBar, Vec<ProgressBar>)>,
    said: Option<(Instant, JobPhase)>,
}

impl View {
    fn new(display: Display) -> Self {
        let bars = (display == Display::Bars).then(|| {
            let all = MultiProgress::new();
            let head = all.add(ProgressBar::no_length());
            (all, head, Vec::new())
        });
        Self { display, bars, said: None }
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
                let due = self.said.is_none_or(|(at, phase)| at.elapsed() >= LINE_EVERY || phase != status.phase);
                if due {
                    self.said = Some((Instant::now(), status.phase));
                    output::note(&sentence(status));
                }
                Ok(())
            }
        }
    }

    fn draw(&mut self, status: &JobStatus) {
        let Some((all, head, racks)) = &mut self.bars else { return };
        let (done, total) = measure(status);
        head.set_style(style("{prefix:<12} {bar:30} {percent:>3}% {msg}"));
        head.set_prefix(word(status.phase));
        head.set_length(total.max(1));
        head.set_position(done);
        head.set_message(details(status));
        for (place, rack) in status.racks.iter().enumerate().take(32) {
            if racks.len() <= place {
                racks.push(all.add(ProgressBar::no_length()));
                racks[place].set_style(style("  {prefix:<24} {bar:16} {percent:>3}% {msg}"));
            }
            let bar = &racks[place];
            bar.set_prefix(rack.rack.clone());
            bar.set_length((u64::from(rack.hosts) * u64::from(status.pieces)).max(1));
            bar.set_position(rack.pieces);
            let word = done_word(status);
            bar.set_message(format!("{}/{} {word}  {}", rack.active, rack.hosts, tiers(&rack.tiers)));
        }
    }

    fn clear(&mut self) {
        if let Some((all, head, racks)) = &self.bars {
            head.finish_and_clear();
            racks.iter().for_each(ProgressBar::finish_and_clear);
            let _ = all.clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Done and total, in the unit of the phase.
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
    let eta = status.eta_s.map_or_else(String::new, |eta| format!(", {eta:.0} s to go"));
    let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    format!("{active}/{hosts} hosts{failed}{eta}  {}", tiers(&status.tiers))
}

fn sentence(status: &JobStatus) -> String {
    let (done, total) = measure(status);
    let percent = if total == 0 { 0.0 } else { done as f64 * 100.0 / total as f64 };
    let phase = word(status.phase);
    format!("{} {} {phase} {percent:.0}%  {}", status.name, status.version, details(status))
}

fn word(phase: JobPhase) -> &'static str {
    match phase {
        JobPhase::Pulling => "pulling",
        JobPhase::Ingesting => "reading",
        JobPhase::Waiting => "waiting",
        JobPhase::Distributing => "distributing",
        JobPhase::Done => "done",
        JobPhase::Failed => "failed",
    }
}
