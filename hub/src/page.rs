//! The page for people: one table of jobs and their progress.
//!
//! Invariant: the page has no scripts, loads nothing from elsewhere, and escapes every text of a job.

use shoal_api::hub::HubJob;
use shoal_proto::plain_text;
use std::fmt::Write;

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
<meta name=viewport content='width=device-width'><title>Shoal</title><style>\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;\
color:#1b2733;background:#f7f9fa}\
h1{font-size:1.4rem}table{border-collapse:collapse;width:100%;background:#fff}\
th,td{text-align:left;padding:.45rem .7rem;border-bottom:1px solid #dde4e8}td.n{text-align:right;\
font-variant-numeric:tabular-nums}progress{width:9rem}.bad{color:#a4262c;font-weight:600}a{color:inherit}\
@media(prefers-color-scheme:dark){body{background:#14191d;color:#dfe7ec}table{background:#1b2227}\
th,td{border-color:#2c363d}.bad{color:#ff8f88}}</style><h1>Shoal</h1>";

/// Headers of the page. A browser then loads and runs nothing from elsewhere, and shows the page in no frame.
pub const HEADERS: [(&str, &str); 2] = [
    ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("cache-control", "no-store"),
];

/// Replaces the characters that have a meaning in HTML, and those that change how the text around them is shown.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in plain_text::escape(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// Returns the page of these jobs.
pub fn render(jobs: &[HubJob]) -> String {
    let mut page = String::from(HEAD);
    if jobs.is_empty() {
        page.push_str("<p>No job has been reported yet.</p>");
        return page;
    }
    page.push_str(
        "<table><tr><th>Name<th>Version<th>Kind<th>Region<th>Progress<th>Active<th>Has<th>Failed<th>Hosts<th>Job</tr>",
    );
    for job in jobs {
        let bad = if job.failed > 0 { " bad" } else { "" };
        let _ = write!(
            // a string takes every write
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td><progress max={} value={}></progress>\
             <td class=n>{}<td class=n>{}<td class='n{bad}'>{}<td class=n>{}\
             <td><a href='/v1/jobs/{}?hosts=true'>{}</a></tr>",
            escape(&job.name),
            escape(&job.version),
            job.kind,
            escape(&job.region),
            job.hosts.max(1),
            job.active,
            job.active,
            job.has,
            job.failed,
            job.hosts,
            job.job,
            job.job.short(),
        );
    }
    page.push_str("</table>");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escape("<b a='\"&"), "&lt;b a=&#39;&quot;&amp;");
        assert_eq!(escape("a\u{202e}<"), "a\\u{202e}&lt;");
        assert!(render(&[]).contains("No job"));
    }
}
