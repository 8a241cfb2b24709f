//! The one-way figures as a picture: bytes a second by message size, both logarithmic.

use plotters::prelude::*;

use crate::bench::size;
use crate::report::{Named, Report, Test, median};

/// One colour after the other. What is measured in place has hollow points.
const COLOURS: [RGBColor; 15] = [
    RGBColor(0xc0, 0x39, 0x2b),
    RGBColor(0xe6, 0x7e, 0x22),
    RGBColor(0x8e, 0x24, 0x6c),
    RGBColor(0x1f, 0x6f, 0xb4),
    RGBColor(0x2e, 0x8b, 0x57),
    RGBColor(0x17, 0xa5, 0x89),
    RGBColor(0x7f, 0x8c, 0x8d),
    RGBColor(0x5d, 0x4e, 0xb8),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x99, 0x99, 0x33),
    RGBColor(0xd4, 0x6a, 0x9f),
    RGBColor(0x6b, 0x42, 0x26),
    RGBColor(0x33, 0xa0, 0xd0),
    RGBColor(0x9a, 0xcd, 0x32),
    RGBColor(0xb8, 0x9b, 0x10),
];

/// A line of the picture: bytes and GB/s.
struct Line<'a> {
    name: &'a str,
    hollow: bool,
    points: Vec<(f64, f64)>,
}

fn lines(report: &Report) -> Vec<Line<'_>> {
    let line = |peer: &Named| {
        let point = |size| {
            let times = report.figures(&peer.name, Test::OneWay, size).into_iter().map(|f| f.ns_per_message());
            median(times).map(|time| (size as f64, size as f64 / time))
        };
        report.sizes(Test::OneWay).into_iter().filter_map(point).collect::<Vec<_>>()
    };
    let all = report.peers.iter().map(|peer| Line { name: &peer.name, hollow: peer.in_place, points: line(peer) });
    all.filter(|line| !line.points.is_empty()).collect()
}

pub(crate) fn svg(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    // Of the distance that most figures are of.
    let parts = report.by_distance();
    let most = parts.into_iter().map(|(_, part)| part).max_by_key(|part| part.samples.len());
    let most = most.ok_or("there are no figures")?;
    let lines = lines(&most);
    let points = || lines.iter().flat_map(|line| line.points.iter());
    // Some air around, which also makes a range of a single point.
    let (left, right) = range(points().map(|point| point.0), 1.4);
    let (low, high) = range(points().map(|point| point.1), 2.0);

    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (1100, 640)).into_drawing_area();
        root.fill(&WHITE)?;
        let (plot, key) = root.split_horizontally(880);
        let mut chart = ChartBuilder::on(&plot)
            .caption("One-way throughput between two processes", ("sans-serif", 24))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((left..right).log_scale().base(2.0), (low..high).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("message size")
            .y_desc("GB/s")
            .x_labels(12)
            .label_style(("sans-serif", 17))
            .axis_desc_style(("sans-serif", 19))
            .x_label_formatter(&|&bytes| size::show(bytes.round() as usize))
            .y_label_formatter(&|giga| format!("{giga}"))
            .draw()?;
        for (row, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let style = colour.stroke_width(2);
            let point = if line.hollow { colour.stroke_width(2) } else { colour.filled() };
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
            chart.draw_series(line.points.iter().map(|&at| Circle::new(at, 4, point)))?;
            let at = 70 + 28 * row as i32;
            key.draw(&PathElement::new([(0, at), (28, at)], style))?;
            key.draw(&Circle::new((14, at), 4, point))?;
            key.draw(&Text::new(line.name.to_owned(), (36, at - 8), ("sans-serif", 17)))?;
        }
        root.present()?;
    }
    Ok(text)
}

/// The range of some positive values, widened by a factor.
fn range(values: impl Iterator<Item = f64>, factor: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), v| (low.min(v), high.max(v)));
    (low / factor, high * factor)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_peer_is_in_the_picture() {
        let svg = super::svg(&crate::report::tests::report()).unwrap();
        assert!(svg.contains("ringpipe") && svg.contains("slow"));
    }
}
