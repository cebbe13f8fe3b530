//! The plot: one horizontal bar for each ratio, with a line from minimum to maximum and a mark at the
//! required value.

use std::fmt::Write;

use crate::report::Bar;

const WIDTH: f64 = 1050.0;
const LEFT: f64 = 560.0;
const RIGHT: f64 = 60.0;
const LINE: f64 = 30.0;
const TOP: f64 = 60.0;

/// Returns the plot as SVG.
#[must_use]
pub fn svg(title: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.spread.max.max(bar.bound.unwrap_or(0.0))).fold(1.0, f64::max) * 1.05;
    let x = |ratio: f64| LEFT + ratio / most * (WIDTH - LEFT - RIGHT);
    let height = TOP + LINE * bars.len() as f64 + 40.0;
    let bottom = height - 35.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">{}</text>\n\
         <text x=\"12\" y=\"42\" fill=\"#555\">ratio: bar = median, line = minimum to maximum, red = what \
         must be reached</text>\n",
        escape(title)
    );
    let step = if most > 8.0 {
        2.0
    } else if most > 4.0 {
        1.0
    } else {
        0.5
    };
    let mut tick = 0.0;
    while tick <= most {
        let at = x(tick);
        let colour = if (tick - 1.0).abs() < 1e-9 { "#888" } else { "#ddd" };
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"{colour}\"/><text x=\"{at:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\" fill=\"#555\">{tick}</text>",
            bottom + 18.0
        );
        tick += step;
    }
    for (n, bar) in bars.iter().enumerate() {
        let y = TOP + LINE * n as f64 + 6.0;
        let middle = y + 9.0;
        let (min, median, max) = (x(bar.spread.min), x(bar.spread.median), x(bar.spread.max));
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"18\" fill=\"#7aa6d8\"/>\
             <path d=\"M{min:.1} {middle}H{max:.1}\" stroke=\"#123\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
            LEFT - 8.0,
            y + 13.0,
            escape(&bar.label),
            median - LEFT,
            max.max(median) + 6.0,
            y + 13.0,
            bar.spread.median,
        );
        if let Some(bound) = bar.bound {
            let at = x(bound);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"#c22\" stroke-width=\"2\"/>",
                y - 4.0,
                y + 22.0
            );
        }
    }
    out += "</svg>\n";
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use benches::stats::Spread;

    #[test]
    fn a_plot_has_a_bar_for_each_ratio_and_escapes_text() {
        let spread = Spread { min: 0.5, median: 1.0, max: 2.0 };
        let bars = [
            Bar { label: "a < b".to_owned(), spread, bound: Some(1.6) },
            Bar { label: "c".to_owned(), spread, bound: None },
        ];
        let text = svg("x & y", &bars);
        assert_eq!(text.matches("<rect x=").count(), 2);
        assert_eq!(text.matches("#c22").count(), 1);
        assert!(text.contains("a &lt; b") && text.contains("x &amp; y") && text.ends_with("</svg>\n"));
    }
}
