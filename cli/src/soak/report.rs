//! What was done, in figures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::soak::clock;

/// What some rounds did and found right.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) rounds: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) kills: u64,
    pub(crate) stops: u64,
    pub(crate) forks: u64,
    pub(crate) execs: u64,
    /// Rounds with an end that was closed in mid-traffic...
    pub(crate) closes: u64,
    /// ...and with signals during blocking calls.
    pub(crate) storms: u64,
    pub(crate) cuts: u64,
    pub(crate) send_timeouts: u64,
    pub(crate) receive_timeouts: u64,
    pub(crate) refusals: u64,
    /// Wake-ups that were timed, those that were slow, and those of them that look lost.
    pub(crate) wakes: u64,
    pub(crate) slow_wakes: u64,
    pub(crate) lost_wakes: u64,
    /// Nanoseconds; see [`crate::soak::board::Rx`].
    pub(crate) longest_wait: u64,
    /// Microseconds from SIGKILL to the other side's error.
    pub(crate) noticed: Vec<u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        let sums = [
            (&mut self.rounds, other.rounds),
            (&mut self.messages, other.messages),
            (&mut self.bytes, other.bytes),
            (&mut self.kills, other.kills),
            (&mut self.stops, other.stops),
            (&mut self.forks, other.forks),
            (&mut self.execs, other.execs),
            (&mut self.closes, other.closes),
            (&mut self.storms, other.storms),
            (&mut self.cuts, other.cuts),
            (&mut self.send_timeouts, other.send_timeouts),
            (&mut self.receive_timeouts, other.receive_timeouts),
            (&mut self.refusals, other.refusals),
            (&mut self.wakes, other.wakes),
            (&mut self.slow_wakes, other.slow_wakes),
            (&mut self.lost_wakes, other.lost_wakes),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.noticed.extend(other.noticed);
    }

    /// One line for those who watch.
    pub(crate) fn line(&self, time: Duration) -> String {
        format!(
            "{:>9}  {} rounds, {} messages, {}, {} kills; no fault",
            clock::show(time),
            grouped(self.rounds),
            grouped(self.messages),
            bytes(self.bytes),
            grouped(self.kills),
        )
    }

    pub(crate) fn table(&self, faults: u64) -> String {
        let mut noticed = self.noticed.clone();
        noticed.sort_unstable();
        let micros = |n: u64| millis(n.saturating_mul(1_000));
        let death = match (noticed.get(noticed.len() / 2), noticed.last()) {
            (Some(&median), Some(&most)) => {
                format!("{} median, {} at most ({} times)", micros(median), micros(most), grouped(noticed.len() as u64))
            }
            _ => "none".to_owned(),
        };
        let rows = [
            ("rounds", grouped(self.rounds)),
            ("messages verified", grouped(self.messages)),
            ("bytes verified", bytes(self.bytes)),
            ("kills", grouped(self.kills)),
            ("stops", grouped(self.stops)),
            ("forks of an end in use", grouped(self.forks)),
            ("execs with an end", grouped(self.execs)),
            ("ends closed in mid-traffic", grouped(self.closes)),
            ("rounds with a signal storm", grouped(self.storms)),
            ("messages cut by a kill", grouped(self.cuts)),
            ("sends timed out", grouped(self.send_timeouts)),
            ("sends refused by a full ring", grouped(self.refusals)),
            ("receives timed out or empty", grouped(self.receive_timeouts)),
            ("wake-ups timed", grouped(self.wakes)),
            ("slow wake-ups", format!("{}, {} as if lost", grouped(self.slow_wakes), grouped(self.lost_wakes))),
            ("longest wait for a message", format!("{} under way", millis(self.longest_wait))),
            ("SIGKILL to error", death),
            ("faults", faults.to_string()),
        ];
        rows.iter().map(|(what, figure)| format!("  {what:<28} {figure}\n")).collect()
    }
}

fn millis(nanos: u64) -> String {
    let millis = nanos as f64 / 1e6;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn bytes(number: u64) -> String {
    match number {
        0..10_000 => format!("{number} B"),
        10_000..10_000_000 => format!("{:.1} kB", number as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", number as f64 / 1e6),
        _ => format!("{:.1} GB", number as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::{Tally, bytes, grouped};

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!([grouped(7), grouped(1234), grouped(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!([bytes(12), bytes(12_345), bytes(12_345_678_901)], ["12 B", "12.3 kB", "12.3 GB"]);
    }

    #[test]
    fn figures_add_up_and_the_longest_wait_stays() {
        let mut tally = Tally { rounds: 1, longest_wait: 5, noticed: vec![3_000], ..Tally::default() };
        tally.add(Tally { rounds: 2, longest_wait: 4, noticed: vec![1_000, 2_000], ..Tally::default() });
        assert_eq!((tally.rounds, tally.longest_wait), (3, 5));
        let table = tally.table(0);
        assert!(table.contains("2.00 ms median, 3.00 ms at most (3 times)"), "{table}");
    }
}
