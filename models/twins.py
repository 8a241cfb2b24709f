#!/usr/bin/env python3
"""Shows that the models can fail: breaks the crate's source in one way at a time, and expects a model to notice.

Every twin names the piece of source that it replaces, which has to be there exactly once: a twin that no longer fits the source is an error,
not a twin less. Usage: models/twins.py [--jobs N] [--daily N] [NAME...]
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPSC, SENDER, RECEIVER = "src/ring/spsc.rs", "src/sender.rs", "src/receiver.rs"
BELL, WAIT, SELECT = "src/bell.rs", "src/wait.rs", "src/select.rs"
MANY, CROWD, SIDE, MANY_SENDER = "src/ring/mpmc.rs", "src/crowd.rs", "src/mpmc/side.rs", "src/mpmc/sender.rs"
MANY_RECEIVER = "src/mpmc/receiver.rs"
TAKE_RUN = "        let len = there.min(most.min(out.capacity())).min(self.data.capacity - first.offset);\n"
HEADER_STORE = "self.data.header_at(self.data.offset(tail)).store(header, Ordering::Release); // P1"
ZERO_STORE = "self.data.header_at(self.data.offset(next)).store(0, Ordering::Relaxed);"
BEGUN_STORE = "words.begun.store(next, Ordering::Release); // P3"
REST_STORE = "self.word(held.position.wrapping_add(cells)).store(rest.0, Ordering::Relaxed);"
READY_STORE = "self.word(held.position).store(ready.0, Ordering::Release); // M1"
TAIL_STORE = "words.tail.store(next, Ordering::Release); // P3"

# (name, file, what stands there, what the twin has instead, the model that has to notice)
TWINS = [
    # --- publication
    ("P1 relaxed", SPSC, HEADER_STORE, HEADER_STORE.replace("Release", "Relaxed"), "ring-publication"),
    ("C1 relaxed", SPSC, "load(Ordering::Acquire); // C1", "load(Ordering::Relaxed); // C1", "ring-publication"),
    ("no zero header behind the record", SPSC, ZERO_STORE, "", "ring-publication"),
    ("the header before the zero behind it", SPSC, f"{ZERO_STORE}\n        {HEADER_STORE}", f"{HEADER_STORE}\n        {ZERO_STORE}", "ring-publication"),
    # --- space
    ("C2 relaxed", SPSC, "store(next, Ordering::Release); // C2", "store(next, Ordering::Relaxed); // C2", "ring-space"),
    ("P2 relaxed", SPSC, "self.head().load(Ordering::Acquire).wrapping_add(capacity); // P2", "self.head().load(Ordering::Relaxed).wrapping_add(capacity); // P2", "ring-space"),
    ("no spare behind a record", SPSC, "self.has_room(tail, record + SPARE).then_some(Claim { tail, offset })", "self.has_room(tail, record).then_some(Claim { tail, offset })", "ring-space"),
    ("padding without room", SPSC, "if !self.has_room(tail, rest + SPARE) {", "if !self.has_room(tail, rest.min(8)) {", "ring-padding"),
    ("released before it is copied out", RECEIVER, """        unsafe {
            self.copy_out(record, 0, bytes.as_mut_ptr(), record.len);
            bytes.set_len(record.len);
        }
        self.release(record);
        Ok(bytes)""", """        self.release(record);
        unsafe {
            self.copy_out(record, 0, bytes.as_mut_ptr(), record.len);
            bytes.set_len(record.len);
        }
        Ok(bytes)""", "pipe-room-reused"),
    # --- records published together
    ("the first of a run is published at once", SPSC, "run.first = header;", "run.first = header;\n            self.data.header_at(at).store(header, Ordering::Release);", "ring-runs"),
    ("a run is released before it is copied out", SPSC, TAKE_RUN, "        self.words().head.store(first.head.wrapping_add(32), Ordering::Release);\n" + TAKE_RUN, "ring-runs"),
    ("C3 relaxed", SPSC, "load(Ordering::Acquire); // C3", "load(Ordering::Relaxed);", "ring-runs"),
    # --- taking over from a killed writer
    ("begun is not stored", SPSC, BEGUN_STORE, "", "ring-takeover"),
    ("begun is not looked at", SPSC, "(fits && words.begun.load(Ordering::Relaxed) == tail)", "fits", "ring-takeover"),
    ("tail before the header", SPSC, f"{HEADER_STORE}\n        {TAIL_STORE}", f"{TAIL_STORE}\n        {HEADER_STORE}", "ring-takeover"),
    ("recovery believes begun", SPSC, "if self.data.header_at(self.data.offset(tail)).load(Ordering::Acquire) == 0 {", "if false {", "ring-takeover"),
    ("recovery forgets what is out", SPSC, "if self.data.header_at(self.data.offset(tail)).load(Ordering::Acquire) == 0 {", "if true {", "ring-takeover"),
    # --- seats
    ("N1 removed", WAIT, "compiler_fence(Ordering::SeqCst); // N1", "", "pipe-one-message"),
    ("N2 removed", WAIT, "fence(Ordering::SeqCst); // N2", "", "pipe-one-message"),
    ("W1 removed", BELL, "self.seats.barrier(); // W1", "", "pipe-one-message"),
    ("no barrier where membarrier is refused", BELL, "if !sys::heavy_barrier() {", "if self.mine().load(Ordering::Relaxed) & STRONG == 0 && !sys::heavy_barrier() {", "pipe-one-message"),
    ("nobody says that membarrier is refused", BELL, "if !sys::register_barrier() {", "if false {", "pipe-one-message"),
    ("W2: no look after the bit is set", WAIT, "            if !self.linger(ready) {\n                if self.bell.departed()", "            {\n                if self.bell.departed()", "pipe-one-message"),
    ("W2: no bit before the look", WAIT, "fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP; // W2", "load(Ordering::SeqCst); // W2", "pipe-one-message"),
    ("the sleeper is woken before its bit is cleared", WAIT, """    if seat.fetch_and(!ASLEEP, Ordering::SeqCst) & ASLEEP != 0 {
        sys::futex_wake_all(seat);
    }""", """    if seat.load(Ordering::SeqCst) & ASLEEP != 0 {
        sys::futex_wake_all(seat);
        seat.fetch_and(!ASLEEP, Ordering::SeqCst);
    }""", "pipe-sender-waits"),
    ("the receiver does not say that there is room", RECEIVER, "        self.waiter.notify(|| true);\n        self.waiter.bell.settle", "        self.waiter.bell.settle", "pipe-sender-waits"),
    # --- the bell
    ("arming does not look again", BELL, "let seen = ready();", "let seen = false;", "pipe-watched-bell"),
    ("arming removes bytes of its own generation", BELL, "byte & CARRIES == 0 && is_stale(byte, current)", "byte & CARRIES == 0", "pipe-watched-bell"),
    ("arming stays in its generation", BELL, "word.wrapping_add(GENERATION) & !(ARMED | RINGING)", "word & !(ARMED | RINGING)", "pipe-watched-bell"),
    ("a claim whatever the generation", BELL, "            if seat.compare_exchange(word, claimed, Ordering::SeqCst, Ordering::Relaxed).is_ok() {\n                // If", "            seat.fetch_and(!ARMED, Ordering::SeqCst);\n            seat.fetch_or(RINGING, Ordering::SeqCst);\n            {\n                // If", "pipe-settled-bell"),
    ("ringing for what has been received", BELL, "|| !is_left() {", "|| { let _ = &is_left; false } {", "pipe-settled-bell"),
    ("R1 relaxed", BELL, "seat.load(Ordering::Acquire); // R1", "seat.load(Ordering::Relaxed); // R1", "pipe-settled-bell"),
    ("who is ringing is not waited for", BELL, "let heard = self.hear_out();", "let heard = self.seats.mine().load(Ordering::Relaxed) | RINGING;", "pipe-settled-bell"),
    ("a claim after that is overlooked", BELL, "self.arm_from(|word| word & RINGING == 0 || heard & RINGING != 0 && same(word), &mut ready)", "self.arm_from(|word| same(word) || true, &mut ready)", "pipe-settled-bell"),
    ("a silent bell is settled without a new generation", BELL, "            let heard = self.hear_out();", "            if self.is_armed() {\n                return;\n            }\n            let heard = self.hear_out();", "pipe-settled-bell"),
    ("ringing without a byte", BELL, "let full = !sys::send_token(self.fd(), token(claimed));", "let full = false;", "pipe-one-message"),
    ("a full bell is silenced without another look", BELL, "        seen || ready()", "        seen", "pipe-one-message"),
    ("who was killed while they rang is believed to go on", BELL, "if word & (ARMED | RINGING) == 0 ||", "if word & ARMED == 0 ||", "pipe-copy-goes-on"),
    ("ringing is not looked for after a message", WAIT, "const ATTENTION: u32 = ASLEEP | ARMED | STRONG | RINGING;", "const ATTENTION: u32 = ASLEEP | ARMED | STRONG;", "pipe-copy-goes-on"),
    ("W1 removed where many are waited for", SELECT, "if !sys::heavy_barrier() {", "if false {", "pipe-two-waited-for"),
    ("many are armed without another look", SELECT, "                sight = end.look();\n                sight != Sight::Nothing\n", "                sight = Sight::Nothing;\n                false\n", "pipe-two-waited-for"),
    ("one of many is not found gone", SELECT, "if self.sight == Sight::Nothing && end.bell().found_gone() {", "if false {", "pipe-two-waited-for-killed"),
    ("a watched bell is not silenced", BELL, "self.watched.store(true, Ordering::Relaxed);", "", "pipe-watched-bell"),
    # --- life and death
    ("the end before the messages", WAIT, "            (true, _) => Wake::Ready,\n            (false, true) => Wake::Gone,", "            (_, true) => Wake::Gone,\n            (true, _) => Wake::Ready,", "pipe-receiver-waits"),
    ("the hint before the socket is closed", WAIT, "    pub(crate) bell: Bell,\n    _farewell: Farewell,", "    _farewell: Farewell,\n    pub(crate) bell: Bell,", "pipe-receiver-waits"),
    ("no hint", BELL, "self.mine().fetch_or(DEPARTED, Ordering::SeqCst);", "", "pipe-receiver-waits"),
    ("who leaves wakes nobody", WAIT, "    seats.depart();\n    wake(seats);", "    seats.depart();", "pipe-receiver-waits"),
    ("the hint is cleared and not followed up", BELL, """            self.seats.theirs().fetch_and(!DEPARTED, Ordering::SeqCst);
            self.ask();""", "            self.seats.theirs().fetch_and(!DEPARTED, Ordering::SeqCst);", "pipe-copies-of-a-sender"),
    ("a hang-up does not end a park", WAIT, "            if got.hung_up || ready()", "            if ready()", "pipe-sender-killed"),
    ("hanging up is kept to oneself", WAIT, "        if replaced {\n            leave(&self.bell.seats);\n        }\n", "", "pipe-receiver-hangs-up"),
    # --- long messages
    ("a message cut short is given out", RECEIVER, "while assembly.missing() > 0 {\n            let record", "while assembly.missing() > 24 {\n            let record", "pipe-long-message"),
    ("the end of a cut message is silent", RECEIVER, "and another goes on.\n                _ => return Err(RecvError::Cut),", "and another goes on.\n                _ => return Ok(Some(assembly.finish().map_or_else(Received::Buffered, Received::Owned))),", "pipe-long-message-killed"),
    ("a time-out inside a message takes nothing back", SENDER, "        self.writer.abort();\n", "", "pipe-long-message-taken-back"),
    # --- ends carried over the bell
    ("the record before its descriptors", SENDER, """        self.waiter.bell.carry(id, fds, deadline)""", """        self.finish(claim, Kind::End, frame.len());
        self.waiter.bell.carry(id, fds, deadline)""", "pipe-carried-end"),
    ("searching for descriptors drops plain bytes", BELL, "                _ if plain < seen => self.take", "                _ if seen > 0 => self.take", "pipe-carried-end-receiver-killed"),
    ("descriptors of later ends are dropped", BELL, "        if mark > id {\n            return Ok(Carried::Nothing);\n        }\n", "", "pipe-carried-end-receiver-killed"),
    ("arming removes bytes that carry descriptors", BELL, "byte & CARRIES == 0 && is_stale(byte, current)", "is_stale(byte, current)", "pipe-carried-end"),
    # --- the ring for many
    ("M1 relaxed", MANY, READY_STORE, READY_STORE.replace("Release", "Relaxed"), "many-publication"),
    ("T1 relaxed on the way to the head", MANY, "load(Ordering::Acquire)); // T1\n            at = match (word", "load(Ordering::Relaxed)); // T1\n            at = match (word", "many-publication"),
    ("M2 relaxed", MANY, "store(held.word.with(0, State::Done).0, Ordering::Release); // M2", "store(held.word.with(0, State::Done).0, Ordering::Relaxed); // M2", "many-room"),
    ("T2 relaxed", MANY, "load(Ordering::Acquire)); // T2", "load(Ordering::Relaxed)); // T2", "many-room-of-two-readers"),
    ("M3 relaxed", MANY, "compare_exchange(start, at, Ordering::AcqRel, Ordering::Relaxed)", "compare_exchange(start, at, Ordering::Relaxed, Ordering::Relaxed)", "many-room-of-two-readers"),
    ("T3 relaxed", MANY, "free.load(Ordering::Acquire)); // T3", "free.load(Ordering::Relaxed)); // T3", "many-room-of-two-readers"),
    ("M4 relaxed", MANY, "let (won, lost) = (Ordering::Release, Ordering::Relaxed);", "let (won, lost) = (Ordering::Relaxed, Ordering::Relaxed);", "many-room"),
    ("no record of the rest", MANY, REST_STORE, "let _ = rest;", "many-cut-short"),
    ("the record before that of its rest", MANY, f"""            {REST_STORE}
        }}
        let ready = Word::new(lap, cells, cells * CELL as u64 - len as u64, State::Ready);
        {READY_STORE}""", f"""            let ready = Word::new(lap, cells, cells * CELL as u64 - len as u64, State::Ready);
            {READY_STORE}
            {REST_STORE}
            return;
        }}
        let ready = Word::new(lap, cells, cells * CELL as u64 - len as u64, State::Ready);
        self.word(held.position).store(ready.0, Ordering::Release);""", "many-cut-short"),
    ("the way to the head goes on by a newer lap", MANY, "(Lap::Newer, _) => self.control().tail.0.free.load(Ordering::Acquire),", "(Lap::Newer, _) => self.behind(at, word),", "many-laps"),
    ("the way to the tail goes on by a newer lap", MANY, "Lap::Newer => self.control().tail.0.free.load(Ordering::Acquire),", "Lap::Newer => self.behind(at, word),", "many-laps"),
    ("room is not looked for", MANY, "if !self.used(at).is_some_and(fits) {", "if false {", "many-room"),
    ("room before it has been read", MANY, "|| word.state() != State::Done {", "|| !matches!(word.state(), State::Done | State::Reading) {", "many-room"),
    ("taken without asking", MANY, "self.word(position).compare_exchange(word.0, reading.0, won, lost).ok()?;", "let _ = (won, lost);\n        self.word(position).store(reading.0, Ordering::Relaxed);", "many-room"),
    ("claimed without asking", MANY, "if self.word(at).compare_exchange(old.0, word.0, won, lost).is_err() {\n            return false;\n        }", "let _ = (won, lost, old);\n        self.word(at).store(word.0, Ordering::Release);", "many-publication"),
    ("records over the end of the ring", MANY, "let pads = cells > rest;", "let pads = false;", "many-padding"),
    ("taken from the living", MANY, ".filter(|&(_, owner)| is_dead(owner))", ".filter(|&(_, owner)| is_dead(owner) || true)", "many-writer-killed"),
    ("taken over without an exchange", MANY, "self.word(at).compare_exchange(word.0, done.0, Ordering::AcqRel, Ordering::Relaxed).is_ok() // M2", "let _ = word;\n        self.word(at).store(done.0, Ordering::Release);\n        true", "many-two-helpers"),
    ("nothing is repaired at the front of the room", MANY, "for at in [Some(self.control().tail.0.free.load(Ordering::Acquire)), head]", "for at in [None, head]", "many-reader-killed"),
    ("nothing is repaired at the head", MANY, "Reached::Record(at, _) => Some(at),\n            _ => None,", "_ => None,", "many-writer-killed"),
    ("a newcomer clears nothing", MANY, "        for _ in 0..4 * self.cells {\n            let word = Word(self.word(at).load(Ordering::Acquire));\n            match word.compare", "        for _ in 0..0 {\n            let word = Word(self.word(at).load(Ordering::Acquire));\n            match word.compare", "many-newcomer"),
    # --- crowds
    ("a sleeper changes no number", CROWD, "let next = |word: u32| word & !SLEEPS | word.wrapping_add(SLEEP) & SLEEPS | bits;", "let next = |word: u32| word | bits;", "crowd-sleepers"),
    ("the number is not moved on before a wake-up", CROWD, """    let word = sleepers.fetch_add(WAKE, Ordering::SeqCst).wrapping_add(WAKE);
    if !sys""", """    let word = sleepers.load(Ordering::SeqCst);
    if !sys""", "crowd-sleepers"),
    ("nobody is said to be asleep before one is woken", CROWD, """    if !sys::futex_wake_one(sleepers, kinds) && !sys::futex_wake_one(sleepers, sys::ANY_KIND) {
        stand_down(sleepers, word);
    }""", """    stand_down(sleepers, word);
    let _ = kinds;
    sys::futex_wake_one(sleepers, sys::ANY_KIND);""", "crowd-sleepers"),
    ("stood down whatever the word", CROWD, "let _ = sleepers.compare_exchange(word, word & !(ASLEEP | FOLLOWED), Ordering::SeqCst, Ordering::Relaxed);", "let _ = word;\n    sleepers.fetch_and(!(ASLEEP | FOLLOWED), Ordering::SeqCst);", "crowd-sleepers"),
    ("no look between the bit and the sleep", CROWD, "let ready = (0..LINGER).any(|_| {", "let ready = false && (0..LINGER).any(|_| {", "crowd-sleepers"),
    ("N1 removed for many", CROWD, "compiler_fence(Ordering::SeqCst); // N1", "", "crowd-sleepers"),
    ("N2 removed for messages", CROWD, "fence(Ordering::SeqCst); // N2\n        let seat = self.theirs();\n        if seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0 {\n            // The bell", "let seat = self.theirs();\n        if seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0 {\n            // The bell", "crowd-sleepers"),
    ("N2 removed for room", CROWD, "fence(Ordering::SeqCst); // N2\n        let seat = self.theirs();\n        if seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0 {\n            let (now", "let seat = self.theirs();\n        if seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0 {\n            let (now", "crowd-room"),
    ("W1 removed where one leads", BELL, "self.seats.barrier(); // W1", "", "crowd-sleepers"),
    ("no wake-up after a message", MANY_SENDER, "self.side.crowd.notify(|| ForMessage(&self.side).look() != Sight::Nothing);", "", "many-two-sleepers"),
    ("no wake-up for room", MANY_RECEIVER, "side.crowd.notify_room(|| side.ring.taken() >= side.ring.capacity() / 4);", "", "many-waits-for-room"),
    ("who leaves the lead passes it on to nobody", CROWD, "        self.leave_nobody_without_a_leader();\n", "", "crowd-room-for-three"),
    ("who follows does not look whether anybody leads", CROWD, "if long && leader(self.mine().leader.load(Ordering::Relaxed)).is_none() {", "if false {", "many-sender-killed"),
    ("who leaves wakes nobody of many", CROWD, "wake_all(unsafe { &self.theirs.as_ref().sleepers });", "", "many-end-of-file"),
    ("leaving is said before the socket is closed", CROWD, "    bell: Bell,\n    _farewell: Farewell,", "    _farewell: Farewell,\n    bell: Bell,", "many-end-of-file"),
    ("the dead keep the lead", CROWD, "if leader(seen).is_some_and(|leader| !sought.is_dead(leader)) {", "let _ = sought;\n        if leader(seen).is_some() {", "many-successor-of-a-leader"),
    ("who succeeds a leader leads without knowing", SIDE, "            crowd::succeed(seat, number);", "            let _ = (seat, number);", "many-successor-of-a-leader"),
    ("who comes in the place of the dead clears nothing", SIDE, "if self.ring.clear(number) {\n            self.tell_all();", "if false {\n            self.tell_all();", "many-successor"),
    ("what a dead sender had is not taken away", SIDE, "let repaired = self.ring.repair(|owner| self.is_dead(owner));", "let repaired = false && self.ring.repair(|owner| self.is_dead(owner));", "many-room-held-by-killed"),
    ("room is given back before the message is copied out", MANY_RECEIVER, """        let copied = unsafe { self.copy_out(taken, bytes.as_mut_ptr()) };
        self.release(taken.held);
        copied.map_err""", """        self.release(taken.held);
        let copied = unsafe { self.copy_out(taken, bytes.as_mut_ptr()) };
        copied.map_err""", "many-waits-for-room"),
]


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def reason(output):
    """The line that says what the model found."""
    lines = output.splitlines()
    for line, following in zip(lines, lines[1:]):
        if "panicked at" in line and "panic in a destructor" not in following:
            return re.sub(r"Id\((\d+)\)", r"\1", following.strip())[:70]
    return "aborted"


def check(twin, place):
    """Builds and runs one twin. What the model found, or an exception."""
    name, file, old, new, model = twin
    for folder in ("src", "models"):
        shutil.rmtree(place / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("target"))
    source = (place / file).read_text()
    if source.count(old) != 1:
        raise ValueError(f"{name}: {source.count(old)} places in {file} fit")
    (place / file).write_text(source.replace(old, new))
    environment = os.environ | {"CARGO_TARGET_DIR": str(place / "target"), "RUST_BACKTRACE": "0"}
    build = run(["cargo", "build", "--quiet", "--profile", "models", "-p", "ringpipe-models"], cwd=place, env=environment)
    if build.returncode != 0:
        raise ValueError(f"{name}: does not compile\n{build.stdout}")
    try:
        result = run([place / "target/models/models", model], cwd=place, env=environment, timeout=300)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{name}: {model} did not end in time") from None
    if result.returncode == 0:
        raise ValueError(f"{name}: {model} did not notice")
    if "there is no model" in result.stdout:
        raise ValueError(f"{name}: {result.stdout}")
    return reason(result.stdout)


def prepare(place):
    """A copy of the workspace without what the models do not need."""
    place.mkdir(parents=True, exist_ok=True)
    for file in ("Cargo.toml", "Cargo.lock", "rustfmt.toml", "README.md"):
        shutil.copy(ROOT / file, place / file)
    for folder in ("bridge", "cli", "benches", "examples", "tests"):
        shutil.rmtree(place / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, place / folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="the twins to check; all of them by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--daily", type=int, default=1, metavar="N", help="one in N of them: others each day, all of them in N days")
    options = parser.parse_args()
    chosen = [twin for twin in TWINS if not options.names or twin[0] in options.names]
    if not chosen:
        parser.error("there is no such twin")
    misfits = [twin[0] for twin in chosen if (ROOT / twin[1]).read_text().count(twin[2]) != 1]
    if misfits:
        sys.exit(f"what these replace is not in the source exactly once: {misfits}")
    chosen = chosen[int(time.time() // 86400) % options.daily :: options.daily]
    places = queue.Queue()
    for job in range(options.jobs):
        place = ROOT / "target" / "twins" / str(job)
        prepare(place)
        places.put(place)

    def one(twin):
        place = places.get()
        try:
            return check(twin, place)
        finally:
            places.put(place)

    missed = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for twin, found in zip(chosen, [pool.submit(one, twin) for twin in chosen]):
            try:
                print(f"{twin[0]:<52} {twin[4]:<30} {found.result()}", flush=True)
            except ValueError as error:
                missed.append(twin[0])
                print(f"NOT CAUGHT: {error}", flush=True)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} broken twins caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
