//! What is shown of pipes: a table, or JSON.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringpipe::inspect::{self, Direction, Flavor, Side, Snapshot};
use serde::Serialize;

use super::find::{self, Doing, Held};
use super::{Look, Snapshots};

/// A pipe, or a name without one. The names of the fields are those of the JSON, which `HELP` promises.
#[derive(Serialize)]
pub(super) struct Entry {
    /// As one would write it for `send`.
    name: Option<String>,
    path: Option<String>,
    kind: Option<&'static str>,
    status: &'static str,
    /// Of a name, who listens, or made the pipe.
    owner: Option<u32>,
    /// The number of the memory file.
    segment: Option<u64>,
    capacity: Option<usize>,
    /// Of a queue: how many sides are in use, by all processes.
    members: Option<usize>,
    directions: Vec<Lane>,
    participants: Vec<Participant>,
}

#[derive(Serialize)]
struct Lane {
    from: &'static str,
    to: &'static str,
    fill_bytes: usize,
    fill_messages: Option<usize>,
    sent_bytes_per_second: Option<f64>,
    received_bytes_per_second: Option<f64>,
    sent_messages_per_second_estimate: Option<f64>,
    received_messages_per_second_estimate: Option<f64>,
    sender: &'static str,
    receiver: &'static str,
}

#[derive(Serialize)]
struct Participant {
    pid: Option<u32>,
    command: Option<String>,
    role: Option<&'static str>,
    state: &'static str,
}

/// What there is to be shown at `now`, with what has changed since `before`.
pub(super) fn entries(before: &Snapshots, now: &Look, all: bool) -> Vec<Entry> {
    let directory = inspect::directory();
    let name = |path: &Path| match (&directory, path.parent()) {
        (Some(own), Some(parent)) if own == parent => {
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
        _ => path.to_string_lossy().into_owned(),
    };
    let mut entries = Vec::new();
    let mut served = Vec::new();
    for (id, held) in &now.found.pipes {
        let Some((at, snapshot)) = now.snapshots.get(id) else { continue };
        let path = held.pipe.name().map(|path| whole(path, now));
        if path.is_none() && !all {
            continue;
        }
        let listener = path.as_ref().and_then(|path| now.found.listeners.get(path));
        let maker = held.pipe.maker().filter(|maker| held.by.contains(maker));
        let earlier = before.get(id).map(|(then, snapshot)| (at.duration_since(*then), snapshot));
        entries.push(Entry {
            name: path.as_deref().map(name),
            path: path.as_ref().map(|path| path.to_string_lossy().into_owned()),
            kind: Some(match held.pipe.flavor() {
                Flavor::Queue => "queue",
                _ => "pipe",
            }),
            status: match (&path, listener) {
                (None, _) => "anonymous",
                (_, Some(listener)) => listener_status(listener),
                (Some(path), None) if now.found.left.contains(path) => "dead",
                (Some(path), None) if now.found.hidden.contains(path) => "listening",
                _ => "closed",
            },
            owner: listener.map(|listener| listener.owner).or(maker),
            segment: Some(*id),
            capacity: Some(held.pipe.capacity()),
            members: snapshot.members,
            directions: lanes(held, snapshot, earlier),
            participants: participants(held, snapshot, maker),
        });
        served.extend(path);
    }
    // Names with nothing behind them that could be seen.
    for (path, listener) in now.found.listeners.iter().filter(|(path, _)| !served.contains(path)) {
        entries.push(Entry::without_pipe(path, name(path), listener_status(listener), Some(listener.owner)));
    }
    for path in now.found.left.iter().filter(|path| !served.contains(path)) {
        entries.push(Entry::without_pipe(path, name(path), "dead", None));
    }
    for path in now.found.hidden.iter().filter(|path| !served.contains(path)) {
        entries.push(Entry::without_pipe(path, name(path), "listening", None));
    }
    entries.sort_by(|a, b| (a.name.is_none(), &a.name, a.segment).cmp(&(b.name.is_none(), &b.name, b.segment)));
    entries
}

/// Children of a killed listener may hold on to its name.
fn listener_status(listener: &find::Listener) -> &'static str {
    if listener.by.contains(&listener.owner) { "listening" } else { "dead" }
}

/// A path that was too long for the name of a memory file is cut at the front.
fn whole(path: &Path, now: &Look) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    // What was not long is not cut, but made up.
    const LONG: usize = 200;
    let end = path.as_os_str().as_bytes();
    let mut known = now.found.listeners.keys().filter(|known| known.as_os_str().as_bytes().ends_with(end));
    match (known.next(), known.next()) {
        (Some(known), None) if end.len() >= LONG => known.clone(),
        _ => path.to_owned(),
    }
}

impl Entry {
    fn without_pipe(path: &Path, name: String, status: &'static str, owner: Option<u32>) -> Entry {
        Entry {
            name: Some(name),
            path: Some(path.to_string_lossy().into_owned()),
            kind: None,
            status,
            owner,
            segment: None,
            capacity: None,
            members: None,
            directions: Vec::new(),
            participants: Vec::new(),
        }
    }
}

fn lanes(held: &Held, snapshot: &Snapshot, earlier: Option<(Duration, &Snapshot)>) -> Vec<Lane> {
    let ends: [(&str, &str); 2] = match (held.pipe.flavor(), held.pipe.name()) {
        (Flavor::Pipe, Some(_)) => [("owner", "client"), ("client", "owner")],
        (Flavor::Pipe, None) if snapshot.directions.len() == 2 => [("first", "second"), ("second", "first")],
        _ => [("senders", "receivers"); 2],
    };
    let lane = |(index, direction): (usize, &Direction)| {
        let (from, to) = ends[index];
        let earlier = earlier.and_then(|(time, snapshot)| Some((time.as_secs_f64(), snapshot.directions.get(index)?)));
        let rate = |cursor: fn(&Direction) -> u64| {
            let (seconds, earlier) = earlier?;
            // Estimates of where it ends may go back a little.
            let bytes = (cursor(direction).wrapping_sub(cursor(earlier)) as i64).max(0);
            (seconds > 0.0).then(|| bytes as f64 / seconds)
        };
        let (sent, received) = (rate(|direction| direction.sent), rate(|direction| direction.received));
        let messages = |bytes: Option<f64>| match bytes? {
            none if none == 0.0 => Some(none),
            some => Some(some / direction.mean?),
        };
        Lane {
            from,
            to,
            fill_bytes: direction.fill,
            fill_messages: direction.messages,
            sent_bytes_per_second: sent,
            received_bytes_per_second: received,
            sent_messages_per_second_estimate: messages(sent),
            received_messages_per_second_estimate: messages(received),
            sender: side(direction.sender),
            receiver: side(direction.receiver),
        }
    };
    snapshot.directions.iter().enumerate().map(lane).collect()
}

fn side(side: Side) -> &'static str {
    match side {
        // Who is parked was asleep before, which may still show.
        Side { parked: true, .. } => "parked",
        Side { asleep: true, .. } => "asleep",
        _ => "awake",
    }
}

fn participants(held: &Held, snapshot: &Snapshot, maker: Option<u32>) -> Vec<Participant> {
    let sides = || snapshot.directions.iter().flat_map(|direction| [direction.sender, direction.receiver]);
    let (asleep, parked) = (sides().any(|side| side.asleep), sides().any(|side| side.parked));
    let mut participants: Vec<Participant> = Vec::new();
    for &pid in &held.by {
        let state = match find::doing(pid, held.pipe.id()) {
            Doing::Running => "running",
            Doing::Stopped => "stopped",
            Doing::Dead => "dead",
            Doing::Sleeping => "asleep",
            Doing::Polling if parked => "parked",
            Doing::Something if parked => "parked",
            Doing::Something if asleep => "asleep",
            Doing::Polling | Doing::Waiting | Doing::Something => "waiting",
        };
        let role = maker.map(|maker| if maker == pid { "owner" } else { "client" });
        participants.push(Participant { pid: Some(pid), command: find::command(pid), role, state });
    }
    let dead = |_: &u16| Participant { pid: None, command: None, role: None, state: "dead" };
    participants.extend(snapshot.dead.iter().map(dead));
    participants
}

pub(super) fn json(entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    // Outside of ASCII there are only the texts, which may be written so.
    let mut text = String::new();
    for c in serde_json::to_string(entries)?.chars() {
        match c as u32 {
            0..0x7f => text.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    writeln!(out, "{text}")
}

pub(super) fn table(entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    let title = [
        "NAME",
        "KIND",
        "STATUS",
        "OWNER",
        "CAPACITY",
        "DIRECTION",
        "FILL",
        "IN /s",
        "OUT /s",
        "SENDER",
        "RECEIVER",
        "PROCESSES",
    ];
    let mut rows = vec![title.map(str::to_owned)];
    for entry in entries {
        let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let head = [
            shown(entry.name.as_deref().unwrap_or("-")),
            entry.kind.unwrap_or("-").to_owned(),
            entry.status.to_owned(),
            text(entry.owner.map(|pid| pid.to_string())),
            text(entry.capacity.map(|bytes| amount(bytes as f64))),
        ];
        let processes: Vec<String> = entry.participants.iter().map(Participant::show).collect();
        let lanes = entry.directions.iter().map(|lane| {
            let messages =
                |messages: Option<f64>| messages.map_or_else(|| "?".to_owned(), |n| format!("~{}", count(n)));
            let rate = |bytes: Option<f64>, number| match bytes {
                Some(bytes) => format!("{}, {}", amount(bytes), messages(number)),
                None => "-".to_owned(),
            };
            let waiting = lane.fill_messages.map_or_else(|| "?".to_owned(), |n| count(n as f64));
            [
                format!("{}>{}", lane.from, lane.to),
                format!("{}, {waiting}", amount(lane.fill_bytes as f64)),
                rate(lane.sent_bytes_per_second, lane.sent_messages_per_second_estimate),
                rate(lane.received_bytes_per_second, lane.received_messages_per_second_estimate),
                lane.sender.to_owned(),
                lane.receiver.to_owned(),
            ]
        });
        let mut lanes: Vec<[String; 6]> = lanes.collect();
        if lanes.is_empty() {
            lanes.push(std::array::from_fn(|_| "-".to_owned()));
        }
        for (number, [direction, fill, sent, received, sender, receiver]) in lanes.into_iter().enumerate() {
            let [name, kind, status, owner, capacity] =
                if number == 0 { head.clone() } else { std::array::from_fn(|_| String::new()) };
            let processes = if number == 0 { processes.join(" ") } else { String::new() };
            rows.push([
                name, kind, status, owner, capacity, direction, fill, sent, received, sender, receiver, processes,
            ]);
        }
    }
    let widths: [usize; 12] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

impl Participant {
    fn show(&self) -> String {
        match (self.pid, &self.command) {
            (Some(pid), Some(command)) => format!("{}[{pid}]:{}", shown(command), self.state),
            (Some(pid), None) => format!("[{pid}]:{}", self.state),
            (None, _) => self.state.to_owned(),
        }
    }
}

/// Nothing that a terminal would take for more than letters: names are chosen by others.
fn shown(text: &str) -> String {
    // Format characters change the direction of what follows, among other things.
    let is_shown = |c: &char| {
        !c.is_control()
            && !matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().map(|c| if is_shown(&c) { c } else { '?' }).collect()
}

/// Bytes, in three digits or so.
pub(crate) fn amount(bytes: f64) -> String {
    scaled(bytes, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

fn count(number: f64) -> String {
    scaled(number, 1000.0, &["", " k", " M", " G"])
}

fn scaled(number: f64, step: f64, units: &[&str]) -> String {
    let (mut number, mut unit) = (number, 0);
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    match unit {
        0 => format!("{number:.0}{}", units[0]),
        _ if number < 10.0 => format!("{number:.2}{}", units[unit]),
        _ => format!("{number:.1}{}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::{amount, count, shown};

    #[test]
    fn amounts_have_about_three_digits() {
        let amounts = [0.0, 1023.0, 1024.0, 1_500_000.0, 3.0e9, 5.0e15].map(amount);
        assert_eq!(amounts, ["0 B", "1023 B", "1.00 KiB", "1.43 MiB", "2.79 GiB", "4547.5 TiB"]);
        assert_eq!([7.0, 1234.0, 56_789_000.0].map(count), ["7", "1.23 k", "56.8 M"]);
    }

    #[test]
    fn names_cannot_talk_to_the_terminal() {
        assert_eq!(shown("a\x1b[2Jb\n\u{202e}\u{9b}é"), "a?[2Jb???é");
    }
}
