//! The distribution of times to the first token, as SVG.

use std::fmt::Write as _;

const COLOURS: [&str; 6] = ["#0b6e4f", "#9a9a9a", "#c8553d", "#d9a441", "#3d5a80", "#000000"];
const LEFT: f64 = 56.0;
const TOP: f64 = 40.0;
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
/// Powers of ten of seconds at the two ends of the axis.
const DECADES: (f64, f64) = (-2.0, 2.0);

/// One curve: its name, and sorted seconds.
pub(crate) type Curve = (String, Vec<f64>);

fn x(seconds: f64) -> f64 {
    let share = (seconds.max(1e-9).log10() - DECADES.0) / (DECADES.1 - DECADES.0);
    LEFT + WIDTH * share.clamp(0.0, 1.0)
}

fn y(share: f64) -> f64 {
    TOP + HEIGHT * (1.0 - share)
}

/// Shares of requests over the time to their first token, on a logarithmic scale.
pub(crate) fn distribution(title: &str, curves: &[Curve]) -> String {
    let mut svg = String::from(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 400" font-family="sans-serif" font-size="12">
<rect width="800" height="400" fill="#ffffff"/>
"##,
    );
    let _ = writeln!(svg, r#"<text x="{LEFT}" y="24" font-size="15">{title}</text>"#);
    for decade in -2..=2 {
        let (at, label) = (x(10_f64.powi(decade)), 10_f64.powi(decade));
        let (bottom, under) = (TOP + HEIGHT, TOP + HEIGHT + 18.0);
        let _ = writeln!(svg, r##"<path d="M{at:.1} {TOP}V{bottom}" stroke="#e0e0e0"/>"##);
        let _ =
            writeln!(svg, r#"<text x="{at:.1}" y="{under}" text-anchor="middle">{label} s</text>"#);
    }
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let (at, right) = (y(share), LEFT + WIDTH);
        let _ = writeln!(svg, r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#e0e0e0"/>"##);
        let percent = share * 100.0;
        let _ = writeln!(
            svg,
            r#"<text x="50" y="{:.1}" text-anchor="end">{percent} %</text>"#,
            at + 4.0
        );
    }
    for (index, (name, seconds)) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        for step in 0..=200 {
            let share = f64::from(step) / 200.0;
            let at = ((seconds.len() - 1) as f64 * share) as usize;
            let verb = if step == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{:.1} {:.1}", x(seconds[at]), y(share));
        }
        let _ =
            writeln!(svg, r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
        let (right, line) = (LEFT + WIDTH + 16.0, TOP + 16.0 + 20.0 * index as f64);
        let _ = writeln!(svg, r#"<text x="{right}" y="{line}" fill="{colour}">{name}</text>"#);
    }
    let (middle, under) = (LEFT + WIDTH / 2.0, TOP + HEIGHT + 40.0);
    let _ = writeln!(
        svg,
        r#"<text x="{middle}" y="{under}" text-anchor="middle">time to first token; share of requests that had it by then</text>"#
    );
    svg.push_str("</svg>\n");
    svg
}
