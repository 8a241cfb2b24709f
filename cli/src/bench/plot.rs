//! The one-way figures as a picture: bytes per second by message size, both logarithmic.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use crate::bench::report::{Rate, Report, Throughput};
use crate::bench::size;

/// A file that can be written to. It is removed if it is new and nothing is drawn.
pub(crate) struct PlotFile {
    path: PathBuf,
    file: File,
    unused: bool,
}

impl PlotFile {
    /// Makes sure of the file before anything is measured. What it holds stays until [`draw`](Self::draw).
    pub(crate) fn create(path: &Path) -> Result<PlotFile, String> {
        let unused = !path.exists();
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = open.map_err(|e| format!("cannot write the plot to {}: {e}", path.display()))?;
        Ok(PlotFile { path: path.to_owned(), file, unused })
    }

    pub(crate) fn draw(mut self, report: &Report) -> io::Result<()> {
        let svg = svg(report).map_err(|e| io::Error::other(format!("cannot draw the plot: {e}")))?;
        let what =
            |e: io::Error| io::Error::new(e.kind(), format!("cannot write the plot to {}: {e}", self.path.display()));
        if self.file.metadata().map_err(what)?.is_file() {
            self.file.set_len(0).map_err(what)?;
        }
        self.file.write_all(svg.as_bytes()).map_err(what)?;
        self.unused = false;
        Ok(())
    }
}

impl Drop for PlotFile {
    fn drop(&mut self) {
        if self.unused {
            // It is empty; if it cannot be removed, it stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// One line of the picture.
type Series = (&'static str, RGBColor, fn(&Throughput) -> &Rate);

const SERIES: [Series; 3] = [
    ("ringpipe", RGBColor(0xc0, 0x39, 0x2b), |row| &row.ringpipe),
    ("fd pipe", RGBColor(0x1f, 0x6f, 0xb4), |row| &row.fd_pipe),
    ("Unix socket", RGBColor(0x2e, 0x8b, 0x57), |row| &row.unix_socket),
];

fn svg(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    let mut rows: Vec<&Throughput> = report.throughput.iter().collect();
    rows.sort_by_key(|row| row.size);
    let sizes = rows.iter().map(|row| row.size as f64);
    let rates = rows.iter().flat_map(|row| SERIES.map(|(_, _, rate)| rate(row).bytes_per_second / 1e9));
    // Some air around, which also makes a range of a single point.
    let (left, right) = range(sizes, 1.4);
    let (low, high) = range(rates, 2.0);

    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (860, 520)).into_drawing_area();
        root.fill(&WHITE)?;
        let caption = "One-way throughput between two processes";
        let mut chart = ChartBuilder::on(&root)
            .caption(caption, ("sans-serif", 24))
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
        for (name, colour, rate) in SERIES {
            let points: Vec<(f64, f64)> =
                rows.iter().map(|row| (row.size as f64, rate(row).bytes_per_second / 1e9)).collect();
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(4))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .legend_area_size(30)
            .label_font(("sans-serif", 18))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.4))
            .draw()?;
        root.present()?;
    }
    Ok(text)
}

/// The range of some positive values, widened by a factor.
fn range(values: impl Iterator<Item = f64>, factor: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), v| (low.min(v), high.max(v)));
    (low / factor, high * factor)
}
