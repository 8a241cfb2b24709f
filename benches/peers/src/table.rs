//! The outcome as Markdown.

use std::fmt::Write;

use crate::bench::size;
use crate::machine::Distance;
use crate::report::{Figures, Named, Report, Setting, Test, median};

/// From here on bytes matter more than messages.
const BYTES_FROM: usize = 4 << 10;

/// Reasons for empty cells, numbered.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn mark(&mut self, peer: &str, why: Option<&str>) -> String {
        let Some(why) = why else { return "–".into() };
        let note = format!("{peer}: {why}");
        let at = self.0.iter().position(|old| *old == note).unwrap_or_else(|| {
            self.0.push(note);
            self.0.len() - 1
        });
        format!("– ({})", at + 1)
    }
}

pub(crate) fn markdown(report: &Report) -> String {
    let (mut text, mut notes) = (String::new(), Notes::default());
    // Writing to a string cannot fail.
    let _ = write(&mut text, report, &mut notes);
    text
}

fn write(out: &mut String, report: &Report, notes: &mut Notes) -> std::fmt::Result {
    let Setting { ringpipe, processor, kernel, processors, rounds, measured_ms, distance, load, seconds, .. } =
        &report.setting;
    writeln!(
        out,
        "ringpipe {ringpipe}, {processor}, {kernel}, processors {processors:?}; medians of {rounds} rounds of {measured_ms} ms,"
    )?;
    writeln!(
        out,
        "a `~` before a figure says that all of them were disturbed. Distance `{distance}`. Load {} at the start and {} at the end of {seconds} s.",
        load[0], load[1]
    )?;
    for (distance, part) in report.by_distance() {
        let far_apart = match distance {
            Distance::Shared => "Two threads of one core",
            Distance::Near => "Near processors",
            Distance::Far => "Far processors",
            Distance::Any => "Any processors",
        };
        writeln!(out, "\n## {far_apart}")?;
        tables(out, &part, notes)?;
    }
    if !notes.0.is_empty() {
        writeln!(out, "\nMissing:\n")?;
        for (number, note) in notes.0.iter().enumerate() {
            writeln!(out, "{}. {note}", number + 1)?;
        }
    }
    Ok(())
}

fn tables(out: &mut String, report: &Report, notes: &mut Notes) -> std::fmt::Result {
    writeln!(out, "\n### One way\n\nMillions of messages a second up to 1 KiB, GB/s from 4 KiB.\n")?;
    table(out, report, (Test::OneWay, true), notes, |peer, size| {
        let time = median(report.figures(peer, Test::OneWay, size).iter().map(|f| f.ns_per_message()))?;
        Some(if size < BYTES_FROM { digits(1e3 / time) } else { digits(size as f64 / time) })
    })?;
    memcpy_row(out, report)?;

    writeln!(out, "\n### One way, compared\n")?;
    writeln!(
        out,
        "How many times as long as ringpipe (in place: as ringpipe in place), median of the ratios of each round;"
    )?;
    writeln!(out, "under 1, in bold, the peer is faster.\n")?;
    table(out, report, (Test::OneWay, false), notes, |peer, size| compared(report, peer, Test::OneWay, size))?;

    writeln!(out, "\n### Round trip, both sides spinning\n\nNanoseconds.\n")?;
    table(out, report, (Test::Spinning, true), notes, |peer, size| {
        median(report.figures(peer, Test::Spinning, size).iter().map(|f| f.ns_per_message())).map(digits)
    })?;

    writeln!(out, "\n### Round trip, compared\n\nAs above.\n")?;
    table(out, report, (Test::Spinning, false), notes, |peer, size| compared(report, peer, Test::Spinning, size))?;

    blocking(out, report, notes)
}

/// A table with a column for each size, and if it is to have that, the bare cache line in the last column and the last row.
fn table(
    out: &mut String,
    report: &Report,
    (test, with_cache_line): (Test, bool),
    notes: &mut Notes,
    cell: impl Fn(&str, usize) -> Option<String>,
) -> std::fmt::Result {
    let sizes = report.sizes(test);
    let mut heads: Vec<String> = sizes.iter().map(|&size| size::show(size)).collect();
    heads.extend(with_cache_line.then(|| "cache line, ns".into()));
    writeln!(out, "| | {} |\n| --- |{}", heads.join(" | "), " ---: |".repeat(heads.len()))?;
    for peer in &report.peers {
        let mut cells = Vec::new();
        for &size in &sizes {
            let doubt = if with_cache_line { doubt(&report.figures(&peer.name, test, size)) } else { "" };
            let text = cell(&peer.name, size).map(|text| format!("{doubt}{text}"));
            cells.push(text.unwrap_or_else(|| notes.mark(&peer.name, report.obstacle(&peer.name, test, size))));
        }
        if with_cache_line {
            let all = sizes.iter().flat_map(|&size| report.figures(&peer.name, test, size));
            cells.push(cache_lines(&all.collect::<Vec<_>>()));
        }
        writeln!(out, "| {} | {} |", title(peer), cells.join(" | "))?;
    }
    if with_cache_line {
        let beside = |&size: &usize| {
            let all = report.peers.iter().flat_map(|peer| report.figures(&peer.name, test, size));
            cache_lines(&all.collect::<Vec<_>>())
        };
        writeln!(out, "| *cache line, ns* | {} | |", sizes.iter().map(beside).collect::<Vec<_>>().join(" | "))?;
    }
    Ok(())
}

/// What stands before a figure that was disturbed whenever it was measured.
fn doubt(figures: &[&Figures]) -> &'static str {
    if figures.iter().any(|f| f.fit) { "" } else { "~" }
}

/// Median and range of the bare cache line beside some figures.
fn cache_lines(figures: &[&Figures]) -> String {
    let times = || figures.iter().map(|f| f.cache_line());
    let (low, high) = times().fold((f64::MAX, 0.0_f64), |(low, high), time| (low.min(time), high.max(time)));
    median(times()).map_or("–".into(), |middle| format!("{middle:.0} ({low:.0}–{high:.0})"))
}

fn memcpy_row(out: &mut String, report: &Report) -> std::fmt::Result {
    write!(out, "| *memcpy on one core, GB/s* |")?;
    for size in report.sizes(Test::OneWay) {
        let rates = report.memcpy.iter().filter(|copy| copy.size == size).map(|copy| copy.bytes_per_second / 1e9);
        write!(out, " {} |", median(rates).map_or(String::new(), digits))?;
    }
    writeln!(out, " |")
}

fn compared(report: &Report, peer: &str, test: Test, size: usize) -> Option<String> {
    let in_place = report.peers.iter().any(|named| named.name == peer && named.in_place);
    let other = report.peers.iter().find(|named| named.in_place == in_place)?;
    let ratio = report.ratio(peer, &other.name, test, size)?;
    Some(if ratio < 1.0 { format!("**{}**", digits(ratio)) } else { digits(ratio) })
}

fn blocking(out: &mut String, report: &Report, notes: &mut Notes) -> std::fmt::Result {
    writeln!(
        out,
        "\n### Blocking\n\nRound trip with both sides blocking, processor time of both for it, and what a receiver"
    )?;
    writeln!(out, "that waits for {} ms costs in a second.\n", report.setting.idle_ms)?;
    writeln!(out, "| | round trip, µs | CPU, µs | idle CPU, µs/s | vain wake-ups a second | cache line, ns |")?;
    writeln!(out, "| --- | ---: | ---: | ---: | ---: | ---: |")?;
    for peer in &report.peers {
        let size = report.sizes(Test::Blocking).first().copied().unwrap_or(0);
        let trips = report.figures(&peer.name, Test::Blocking, size);
        let idle = report.figures(&peer.name, Test::Idle, size);
        let mut show = |test, value: Option<f64>| match value {
            Some(value) => doubt(&report.figures(&peer.name, test, size)).to_owned() + &digits(value),
            None => notes.mark(&peer.name, report.obstacle(&peer.name, test, size)),
        };
        let trip = show(Test::Blocking, median(trips.iter().map(|f| f.ns_per_message() / 1e3)));
        let cpu = show(Test::Blocking, median(trips.iter().map(|f| f.cpu_per_message() / 1e3)));
        let idle_cpu = show(Test::Idle, median(idle.iter().map(|f| f.idle_second().0 / 1e3)));
        let wake_ups = show(Test::Idle, median(idle.iter().map(|f| f.idle_second().1)));
        let lines = cache_lines(&trips);
        writeln!(out, "| {} | {trip} | {cpu} | {idle_cpu} | {wake_ups} | {lines} |", title(peer))?;
    }
    Ok(())
}

fn title(peer: &Named) -> String {
    match peer {
        Named { in_place: true, name, .. } => format!("{name} †"),
        Named { name, .. } => name.clone(),
    }
}

/// Three significant digits or so.
fn digits(value: f64) -> String {
    let places = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use crate::report::Outcome;
    use crate::report::tests::report;

    #[test]
    fn medians_ratios_and_reasons_are_in_the_tables() {
        let text = super::markdown(&report());
        // 10 and 100 ns a message against 20 and 400.
        assert!(text.contains("| ringpipe | 18.2 | – | 105 (105–105) |"), "{text}");
        assert!(text.contains("| slow | 4.76 | – (1) | 105 (105–105) |"), "{text}");
        assert!(text.contains("| slow | 3.00 | – (1) |\n"), "{text}");
        assert!(text.contains("1. slow: too small"), "{text}");
    }

    #[test]
    fn what_was_always_disturbed_is_marked() {
        let mut all = report();
        for sample in &mut all.samples {
            if let Outcome::Figures(figures) = &mut sample.outcome {
                figures.fit = false;
            }
        }
        let text = super::markdown(&all);
        assert!(text.contains("| ringpipe | ~18.2 |"), "{text}");
    }
}
