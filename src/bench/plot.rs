//! Four plots as one SVG: the distributions of TTFT and ITL, throughput and TTFT over time.

use std::fmt::Write as _;

use super::report::Report;

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 760.0;
/// Plotting area of a panel.
const PANEL: (f64, f64) = (440.0, 250.0);
/// Where the panels' areas begin.
const LEFT: [f64; 2] = [70.0, 590.0];
const TOP: [f64; 2] = [90.0, 440.0];
/// Most stretches of time in a line.
const MOST_STEPS: usize = 60;
const BLUE: &str = "#2563a8";
const ORANGE: &str = "#c2571a";

/// How values become positions.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

/// One plot: its place, its axes and what it says.
struct Panel<'a> {
    place: (f64, f64),
    x: Axis,
    y: Axis,
    title: &'a str,
    x_label: &'a str,
    y_label: &'a str,
}

impl Axis {
    /// From 0 to a round number that holds all values.
    fn linear(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0, f64::max);
        let high = if most > 0.0 { most } else { 1.0 };
        let step = step(high);
        Self { low: 0.0, high: (high / step).ceil() * step, log: false }
    }

    /// From 0 to exactly this.
    fn until(end: f64) -> Self {
        Self { low: 0.0, high: if end > 0.0 { end } else { 1.0 }, log: false }
    }

    /// Decades that hold all values above 0.
    fn log(values: impl Iterator<Item = f64> + Clone) -> Self {
        let above = values.filter(|value| *value > 0.0);
        let low = above.clone().fold(f64::INFINITY, f64::min);
        let high = above.fold(0.0, f64::max);
        if high <= 0.0 {
            return Self { low: 0.1, high: 10.0, log: true };
        }
        // Zero is drawn at the left end, which must not be far below everything else.
        let low = 10_f64.powf(low.max(high / 1e6).log10().floor());
        let high = 10_f64.powf(high.log10().ceil());
        Self { low, high: if high > low { high } else { low * 10.0 }, log: true }
    }

    /// From 0 to 1 within the axis.
    fn share(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = (self.high / self.low).log10().round() as i32;
            let parts: &[f64] = if decades <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let all = (0..=decades)
                .flat_map(|decade| parts.iter().map(move |part| part * 10_f64.powi(decade)));
            return all
                .map(|tick| tick * self.low)
                .filter(|tick| *tick <= self.high * 1.001)
                .collect();
        }
        let step = step(self.high);
        let count = (self.high / step * 1.000_001).floor() as u32;
        (0..=count).map(|index| f64::from(index) * step).collect()
    }
}

/// The distance of about five round ticks.
fn step(high: f64) -> f64 {
    let decade = 10_f64.powf((high / 5.0).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|part| part * decade);
    steps.into_iter().find(|step| high / step <= 5.0).unwrap_or(decade * 10.0)
}

impl Panel<'_> {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let ((left, top), (width, height)) = (self.place, PANEL);
        (left + self.x.share(x) * width, top + (1.0 - self.y.share(y)) * height)
    }

    /// Frame, grid, ticks and labels.
    fn frame(&self, to: &mut String) -> std::fmt::Result {
        let ((left, top), (width, height)) = (self.place, PANEL);
        let (right, bottom) = (left + width, top + height);
        writeln!(
            to,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" class=\"frame\"/>"
        )?;
        for tick in self.x.ticks() {
            let (x, _) = self.at(tick, self.y.low);
            writeln!(
                to,
                "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" class=\"grid\"/>"
            )?;
            let y = bottom + 17.0;
            writeln!(to, "<text x=\"{x:.1}\" y=\"{y}\" class=\"mid\">{}</text>", number(tick))?;
        }
        for tick in self.y.ticks() {
            let (_, y) = self.at(self.x.low, tick);
            writeln!(
                to,
                "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" class=\"grid\"/>"
            )?;
            let (x, y) = (left - 7.0, y + 4.0);
            writeln!(to, "<text x=\"{x}\" y=\"{y:.1}\" class=\"end\">{}</text>", number(tick))?;
        }
        let (middle, below, above) = (left + width / 2.0, bottom + 37.0, top - 12.0);
        writeln!(
            to,
            "<text x=\"{middle}\" y=\"{below}\" class=\"mid\">{}</text>",
            escaped(self.x_label)
        )?;
        writeln!(
            to,
            "<text x=\"{left}\" y=\"{above}\" class=\"title\">{}</text>",
            escaped(self.title)
        )?;
        let (x, y) = (left - 52.0, top + height / 2.0);
        writeln!(
            to,
            "<text x=\"{x}\" y=\"{y}\" transform=\"rotate(-90 {x} {y})\" class=\"mid\">{}</text>",
            escaped(self.y_label)
        )
    }

    fn line(&self, points: &[(f64, f64)], color: &str, to: &mut String) -> std::fmt::Result {
        write!(to, "<polyline class=\"curve\" stroke=\"{color}\" points=\"")?;
        for &(x, y) in points {
            let (x, y) = self.at(x, y);
            write!(to, "{x:.1},{y:.1} ")?;
        }
        writeln!(to, "\"/>")
    }

    fn dots(&self, points: &[(f64, f64)], color: &str, to: &mut String) -> std::fmt::Result {
        writeln!(to, "<g fill=\"{color}\" fill-opacity=\"0.45\">")?;
        for &(x, y) in points {
            let (x, y) = self.at(x, y);
            writeln!(to, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.8\"/>")?;
        }
        writeln!(to, "</g>")
    }
}

/// The whole image.
pub(super) fn svg(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, to: &mut String) -> std::fmt::Result {
    writeln!(
        to,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\">\n<style>text{{font:12px system-ui,sans-serif;fill:#333}}\
         .title{{font-size:14px;font-weight:600}}.head{{font-size:17px;font-weight:600}}\
         .mid{{text-anchor:middle}}.end{{text-anchor:end}}.frame{{fill:#fff;stroke:#999}}\
         .grid{{stroke:#e4e4e4}}.curve{{fill:none;stroke-width:1.8}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fbfbfb\"/>"
    )?;
    let head = format!("{} · {}", report.model, report.workload);
    let below = format!(
        "{} · {:.1} requests/s · {:.0} output tokens/s",
        report.load, report.throughput.requests_per_s, report.throughput.output_tokens_per_s
    );
    let left = LEFT[0];
    writeln!(to, "<text x=\"{left}\" y=\"32\" class=\"head\">{}</text>", escaped(&head))?;
    writeln!(to, "<text x=\"{left}\" y=\"54\">{}</text>", escaped(&below))?;
    distribution("Time to first token", &report.curves.ttft, (LEFT[0], TOP[0]), BLUE, to)?;
    distribution("Time between tokens", &report.curves.itl, (LEFT[1], TOP[0]), ORANGE, to)?;
    throughput(report, (LEFT[0], TOP[1]), to)?;
    first_tokens(report, (LEFT[1], TOP[1]), to)?;
    writeln!(to, "</svg>")
}

fn distribution(
    title: &str,
    curve: &[(f64, f64)],
    place: (f64, f64),
    color: &str,
    to: &mut String,
) -> std::fmt::Result {
    let panel = Panel {
        place,
        x: Axis::log(curve.iter().map(|point| point.0)),
        y: Axis { low: 0.0, high: 1.0, log: false },
        title,
        x_label: "milliseconds",
        y_label: "share of values at most",
    };
    panel.frame(to)?;
    // A share is reached at its value and not before: steps, from nothing.
    let mut before = 0.0;
    let mut steps = Vec::with_capacity(2 * curve.len() + 1);
    for &(value, share) in curve {
        steps.extend([(value, before), (value, share)]);
        before = share;
    }
    steps.extend(curve.last().map(|_| (panel.x.high, 1.0)));
    panel.line(&steps, color, to)
}

fn throughput(report: &Report, place: (f64, f64), to: &mut String) -> std::fmt::Result {
    let series = &report.over_time;
    // Narrow stretches would show the rhythm of single steps.
    let together = series.events.len().div_ceil(MOST_STEPS).max(1);
    let width = series.bucket_s * together as f64;
    let stretches: Vec<_> = series
        .events
        .chunks(together)
        .enumerate()
        .map(|(index, events)| {
            let from = index as f64 * width;
            let until = (from + series.bucket_s * events.len() as f64).min(report.duration_s);
            let seconds = (until - from).max(series.bucket_s / 10.0);
            (from, from + seconds, events.iter().sum::<u64>() as f64 / seconds)
        })
        .collect();
    let panel = Panel {
        place,
        x: Axis::until(report.duration_s),
        y: Axis::linear(stretches.iter().map(|stretch| stretch.2)),
        title: "Throughput",
        x_label: "seconds since the start",
        y_label: "token events a second",
    };
    panel.frame(to)?;
    let steps = stretches.iter().flat_map(|&(from, until, rate)| [(from, rate), (until, rate)]);
    panel.line(&steps.collect::<Vec<_>>(), BLUE, to)
}

fn first_tokens(report: &Report, place: (f64, f64), to: &mut String) -> std::fmt::Result {
    let points = &report.curves.ttft_over_time;
    let panel = Panel {
        place,
        x: Axis::until(report.duration_s),
        y: Axis::linear(points.iter().map(|point| point.1)),
        title: "Time to first token, by the time of sending",
        x_label: "seconds since the start",
        y_label: "milliseconds",
    };
    panel.frame(to)?;
    panel.dots(points, ORANGE, to)
}

/// Short, without zeros at its end.
fn number(value: f64) -> String {
    let (scaled, unit) = if value >= 1e6 {
        (value / 1e6, "M")
    } else if value >= 1e4 {
        (value / 1e3, "k")
    } else {
        (value, "")
    };
    let text = format!("{scaled:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

fn escaped(text: &str) -> String {
    let plain = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    plain.chars().filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    /// The tags that are open at the end, none if `svg` is well-formed as far as tags go.
    fn open_tags(svg: &str) -> Vec<&str> {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, text) = tag.split_once('>').expect("a tag ends");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.split([' ', '/']).find(|name| !name.is_empty()).unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            for rest in text.split('&').skip(1) {
                let known = ["amp;", "lt;", "gt;"].iter().any(|known| rest.starts_with(known));
                assert!(known, "&{rest}");
            }
        }
        open
    }

    #[test]
    fn the_image_is_well_formed_whatever_was_measured() {
        let mut report = example();
        report.model = "a<b>&\"c\"\n".into();
        let full = report.to_svg();
        report.curves = Default::default();
        report.over_time = Default::default();
        report.duration_s = 0.0;
        let empty = report.to_svg();
        for svg in [&full, &empty] {
            assert!(open_tags(svg).is_empty());
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
            for label in ["milliseconds", "seconds since the start", "share of values at most"] {
                assert!(svg.contains(label), "{label}");
            }
        }
        assert_eq!(full.matches("<circle").count(), 2);
    }

    #[test]
    fn axes_hold_all_values_and_have_round_ticks() {
        let axis = Axis::linear([3.0, 87.0].into_iter());
        assert_eq!((axis.high, axis.ticks()), (100.0, vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]));
        let axis = Axis::log([0.0, 0.3, 40.0].into_iter());
        assert_eq!((axis.low, axis.high), (0.1, 100.0));
        assert_eq!((axis.share(0.0), axis.share(100.0)), (0.0, 1.0));
        assert!((axis.share(1.0) - 1.0 / 3.0).abs() < 1e-9);
        let shown: Vec<_> = axis.ticks().into_iter().map(number).collect();
        assert_eq!(shown, ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!([0.0, 12_500.0, 3e6].map(number), ["0", "12.5k", "3M"]);
    }
}
