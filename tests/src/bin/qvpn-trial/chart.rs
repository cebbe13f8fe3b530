//! One plot as HTML: the lines are SVG that stretches with the page, the labels are text that doesn't.

use std::fmt::Write;

/// A plot. Times and values are in the units of the axes.
pub struct Chart {
    pub title: String,
    /// Description of the plot, for screen readers.
    pub says: String,
    pub unit: &'static str,
    pub range: (f64, f64),
    pub ticks: Vec<(f64, String)>,
    pub bands: Vec<Band>,
    pub lines: Vec<Line>,
    /// A horizontal line, with its name.
    pub limit: Option<(f64, &'static str)>,
}

/// A marked span of time.
#[derive(Clone)]
pub struct Band {
    pub from: f64,
    pub to: f64,
    pub class: &'static str,
}

/// Values over time; a value that isn't a number is a gap.
pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;

impl Chart {
    pub fn html(&self) -> String {
        let top = nice(self.greatest());
        let x = |at: f64| (at - self.range.0) / (self.range.1 - self.range.0);
        let mut svg = String::new();
        for band in &self.bands {
            let (from, to) = (x(band.from).max(0.0), x(band.to).min(1.0));
            if to > from {
                // Visible even if narrow.
                let width = ((to - from) * WIDTH).max(2.0);
                write!(
                    svg,
                    "<rect class=\"{}\" x=\"{:.1}\" y=\"0\" width=\"{width:.1}\" height=\"100\"/>",
                    band.class,
                    from * WIDTH
                )
                .unwrap();
            }
        }
        for share in [0.0, 0.5, 1.0] {
            write!(svg, "<path class=\"grid\" d=\"M0 {0}H1000\"/>", share * HEIGHT).unwrap();
        }
        for (at, _) in &self.ticks {
            write!(svg, "<path class=\"grid\" d=\"M{:.1} 0V100\"/>", x(*at) * WIDTH).unwrap();
        }
        if let Some((limit, _)) = self.limit {
            write!(svg, "<path class=\"limit\" d=\"M0 {:.1}H1000\"/>", (1.0 - limit / top) * HEIGHT).unwrap();
        }
        for (number, line) in self.lines.iter().enumerate() {
            let mut path = String::new();
            let mut pen_down = false;
            for (at, value) in &line.points {
                if !value.is_finite() || *at < self.range.0 || *at > self.range.1 {
                    pen_down = false;
                    continue;
                }
                let (px, py) = (x(*at) * WIDTH, (1.0 - value / top) * HEIGHT);
                write!(path, "{}{px:.1} {py:.1}", if pen_down { "L" } else { "M" }).unwrap();
                pen_down = true;
            }
            write!(svg, "<path class=\"line l{number}\" d=\"{path}\"/>").unwrap();
        }
        let mut legend = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            write!(
                legend,
                "<span><svg class=\"key\" viewBox=\"0 0 24 4\" aria-hidden=\"true\"><path \
                            class=\"line l{number}\" d=\"M0 2H24\"/></svg> {}</span>",
                line.name
            )
            .unwrap();
        }
        if let Some((_, name)) = self.limit {
            write!(
                legend,
                "<span><svg class=\"key\" viewBox=\"0 0 24 4\" aria-hidden=\"true\"><path \
                            class=\"limit\" d=\"M0 2H24\"/></svg> {name}</span>"
            )
            .unwrap();
        }
        let labels: String = [(1.0, top), (0.5, top / 2.0), (0.0, 0.0)]
            .iter()
            .map(|(share, value)| {
                format!("<span style=\"top:{:.0}%\">{}</span>", (1.0 - share) * 100.0, tidy(*value))
            })
            .collect();
        let mut ticks = String::new();
        for (at, text) in &self.ticks {
            write!(ticks, "<span style=\"left:{:.2}%\">{text}</span>", x(*at) * 100.0).unwrap();
        }
        format!(
            "<figure class=\"chart\"><figcaption><b>{}</b> <span class=\"unit\">{}</span><span \
             class=\"legend\">{legend}</span></figcaption><div class=\"y\" \
             aria-hidden=\"true\">{labels}</div><svg class=\"plot\" viewBox=\"0 0 1000 100\" \
             preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">{svg}</svg><div class=\"x\" \
             aria-hidden=\"true\">{ticks}</div></figure>\n",
            self.title, self.unit, self.says
        )
    }

    fn greatest(&self) -> f64 {
        let values = self.lines.iter().flat_map(|line| &line.points);
        let seen =
            values.filter(|(at, _)| *at >= self.range.0 && *at <= self.range.1).map(|(_, value)| *value);
        seen.chain(self.limit.map(|(limit, _)| limit * 1.1)).filter(|v| v.is_finite()).fold(0.0, f64::max)
    }
}

/// Returns the next round number, from `value` up, whose half is round as well.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|n| n * power)
        .find(|n| *n >= value * 0.999)
        .unwrap_or(value)
}

fn tidy(value: f64) -> String {
    if value == value.round() { crate::text::thousands(value as u64) } else { format!("{value}") }
}

/// Divides `range` into equal pieces and returns the minimum and the maximum of each, so that no peak is
/// lost.
pub fn extremes(points: &[(f64, f64)], range: (f64, f64), pieces: usize) -> Vec<(f64, f64)> {
    let width = (range.1 - range.0) / pieces as f64;
    let mut out: Vec<(f64, f64)> = Vec::new();
    let mut rest = points.iter().filter(|(at, _)| *at >= range.0 && *at <= range.1).peekable();
    while let Some(first) = rest.next() {
        let end = range.0 + (((first.0 - range.0) / width).floor() + 1.0) * width;
        let (mut least, mut greatest) = (*first, *first);
        while let Some(next) = rest.next_if(|next| next.0 < end && next.1.is_finite() == first.1.is_finite())
        {
            if next.1 < least.1 {
                least = *next;
            }
            if next.1 > greatest.1 {
                greatest = *next;
            }
        }
        let (a, b) = if least.0 <= greatest.0 { (least, greatest) } else { (greatest, least) };
        out.push(a);
        if a != b {
            out.push(b);
        }
    }
    out
}

/// Divides `range` into equal pieces and returns the amount per second in each, at its middle. A piece
/// consists of whole tenths of a second, because some counts come in tenths; a rest at the end is left out.
pub fn rates(points: impl Iterator<Item = (f64, f64)>, range: (f64, f64), pieces: usize) -> Vec<(f64, f64)> {
    let width = ((range.1 - range.0) / pieces as f64 / 0.1).ceil() * 0.1;
    let mut sums = vec![0.0; ((range.1 - range.0) / width) as usize];
    for (at, value) in points {
        let piece = (at - range.0) / width;
        if piece >= 0.0
            && let Some(sum) = sums.get_mut(piece as usize)
        {
            *sum += value / width;
        }
    }
    sums.into_iter().enumerate().map(|(n, sum)| (range.0 + (n as f64 + 0.5) * width, sum)).collect()
}
