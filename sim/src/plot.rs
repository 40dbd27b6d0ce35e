//! A picture of a run as one SVG file: how many hosts are done at each time, and when each host of each rack was done.

use crate::run::Outcome;
use std::fmt::Write;

const WIDTH: f64 = 900.0;
const CURVE: f64 = 260.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const CELL_MAX: f64 = 24.0;

/// Draws the completion curve and a heat map of the racks.
pub fn svg(outcome: &Outcome, title: &str) -> String {
    let mut times: Vec<f64> = outcome.done.iter().flatten().flatten().copied().collect();
    times.sort_by(f64::total_cmp);
    let figures = &outcome.figures;
    let end = figures.makespan_s.max(figures.bound_s).max(1e-9) * 1.05;
    let inner = WIDTH - LEFT - 20.0;
    let x = |seconds: f64| LEFT + seconds / end * inner;
    let y = |part: f64| TOP + (1.0 - part) * CURVE;
    let rows = outcome.done.len().max(1);
    let cell = (CELL_MAX).min(inner / outcome.done.iter().map(Vec::len).max().unwrap_or(1).max(1) as f64).max(1.0);
    let columns =
        ((inner / (cell * outcome.done.iter().map(Vec::len).max().unwrap_or(1).max(1) as f64 + 8.0)) as usize).max(1);
    let map_top = TOP + CURVE + 60.0;
    let height = map_top + rows.div_ceil(columns) as f64 * (cell + 4.0) + 30.0;
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{text}"); // A string accepts all text.
    };
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" font-family="sans-serif" font-size="12">"#
    ));
    line(format_args!(r#"<rect width="100%" height="100%" fill="white"/>"#));
    line(format_args!(r#"<text x="{LEFT}" y="20" font-size="14">{}</text>"#, escape(title)));
    for step in 0..=4 {
        let part = f64::from(step) / 4.0;
        line(format_args!(
            r##"<line x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{:.0} %</text>"##,
            LEFT + inner,
            LEFT - 6.0,
            y(part) + 4.0,
            part * 100.0,
            y = y(part),
        ));
        line(format_args!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{:.1} s</text>"#,
            x(end * part),
            TOP + CURVE + 18.0,
            end * part
        ));
    }
    line(format_args!(
        r##"<line x1="{0:.1}" x2="{0:.1}" y1="{TOP}" y2="{1:.1}" stroke="#c33" stroke-dasharray="4"/><text x="{0:.1}" y="{2:.1}" fill="#c33">bound</text>"##,
        x(figures.bound_s),
        TOP + CURVE,
        TOP - 4.0
    ));
    // More points than about 1,000 cannot be distinguished.
    let step = (times.len() / 1000).max(1);
    let mut path = format!("M{:.1} {:.1}", x(0.0), y(0.0));
    for (number, seconds) in times.iter().enumerate().step_by(step) {
        let part = (number + 1) as f64 / f64::from(figures.hosts.max(1));
        let _ = write!(path, " H{:.1} V{:.1}", x(*seconds), y(part)); // As above.
    }
    if let Some(last) = times.last() {
        let _ = // As above.
            write!(path, " H{:.1} V{:.1}", x(*last), y(times.len() as f64 / f64::from(figures.hosts.max(1))));
    }
    line(format_args!(r##"<path d="{path}" fill="none" stroke="#06c" stroke-width="2"/>"##));
    line(format_args!(
        r#"<text x="{LEFT}" y="{:.1}">one square per host, grouped by rack: darker is later, red is never</text>"#,
        map_top - 8.0
    ));
    for (number, rack) in outcome.done.iter().enumerate() {
        let wide = rack.len() as f64 * cell + 8.0;
        let (column, row) = (number % columns, number / columns);
        for (host, done) in rack.iter().enumerate() {
            let (left, top) = (LEFT + column as f64 * wide + host as f64 * cell, map_top + row as f64 * (cell + 4.0));
            let colour = done.map_or("#d22".to_string(), |seconds| {
                let light = 92.0 - 70.0 * (seconds / figures.makespan_s.max(1e-9));
                format!("hsl(210 70% {light:.0}%)")
            });
            line(format_args!(
                r#"<rect x="{left:.1}" y="{top:.1}" width="{0:.1}" height="{cell:.1}" fill="{colour}"/>"#,
                (cell - 1.0).max(0.5)
            ));
        }
    }
    line(format_args!("</svg>"));
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
