//! `ringpipe send`, `recv` and `queue`, run as a user runs them.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::await_end;

const LIMIT: Duration = Duration::from_secs(60);

/// A path that nobody else uses.
fn name(of: &str) -> String {
    let path: PathBuf = std::env::temp_dir().join(format!("ringpipe-cli-{}-{of}", std::process::id()));
    path.into_os_string().into_string().unwrap()
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpipe"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Writes `input`, and reads what comes out until the end: exit code, output, errors.
fn finish(mut child: Child, input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // It may go before it has read everything.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let errors = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    let status = await_end(&mut child, LIMIT);
    writer.join().unwrap();
    (status.code(), reader.join().unwrap(), errors.join().unwrap())
}

fn await_file(path: &str) {
    let give_up = Instant::now() + LIMIT;
    while !PathBuf::from(path).exists() {
        assert!(Instant::now() < give_up, "{path} does not appear");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a process has mapped a pipe.
fn await_joined(child: &Child) {
    let give_up = Instant::now() + LIMIT;
    while !std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap().contains("memfd:ringpipe") {
        assert!(Instant::now() < give_up, "process {} does not join", child.id());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Through a pipe of one sender and one receiver, whichever comes first.
fn transfer(of: &str, mode: &[&str], input: &[u8]) -> Vec<u8> {
    let name = name(of);
    let args = |command| [&[command, name.as_str()], mode].concat();
    let sender = start(&args("send"));
    let receiver = start(&args("recv"));
    let input = input.to_vec();
    let sent = thread::spawn(move || finish(sender, &input));
    let (code, output, errors) = finish(receiver, b"");
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let (code, _, errors) = sent.join().unwrap();
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(!PathBuf::from(&name).exists());
    output
}

#[test]
fn a_stream_of_bytes_arrives_as_it_was_sent() {
    let bytes: Vec<u8> = (0..5_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    assert!(transfer("raw", &[], &bytes) == bytes, "other bytes arrived");
    assert_eq!(transfer("none", &[], b""), b"");
}

#[test]
fn lines_and_frames_are_messages() {
    // The last line has no end in what is sent, and has one in what arrives.
    assert_eq!(transfer("lines", &["--lines"], b"one\n\nthree\nlast"), b"one\n\nthree\nlast\n");
    let frames = b"\x03\0\0\0one\0\0\0\0\x05\0\0\0three";
    assert_eq!(transfer("frames", &["--frames"], frames), frames);
}

#[test]
fn a_frame_that_is_cut_short_is_an_error() {
    for input in [&b"\x03\0\0"[..], b"\x03\0\0\0on"] {
        let name = name("cut");
        let receiver = start(&["recv", &name, "--frames"]);
        let (code, _, errors) = finish(start(&["send", &name, "--frames"]), input);
        assert_eq!(code, Some(1));
        assert!(errors.contains("the input ends inside"), "{errors}");
        assert_eq!(finish(receiver, b"").0, Some(3), "that was not all");
    }
}

#[test]
fn the_exit_code_says_what_went_wrong() {
    for command in ["send", "recv"] {
        let (code, _, errors) = finish(start(&[command, ""]), b"");
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains("the name is empty"), "{errors}");
        let (code, _, errors) = finish(start(&[command, &name("nobody"), "--timeout", "1s"]), b"");
        assert_eq!(code, Some(4), "{errors}");
        assert!(errors.contains("timed out") || errors.contains("there is no such name"), "{errors}");
    }
    // A sender that is killed: what it had sent is there, and not said to be all.
    let cut = name("cut-off");
    let receiver = start(&["recv", &cut, "--lines"]);
    let mut sender = start(&["send", &cut, "--lines"]);
    sender.stdin.as_mut().unwrap().write_all(b"one\ntwo").unwrap();
    await_no_file(&cut);
    thread::sleep(Duration::from_millis(200));
    sender.kill().unwrap();
    sender.wait().unwrap();
    let (code, output, errors) = finish(receiver, b"");
    assert_eq!((code, output), (Some(3), b"one\n".to_vec()), "{errors}");
    // A receiver that is killed.
    let name = name("killed");
    let mut receiver = start(&["recv", &name]);
    let mut sender = start(&["send", &name]);
    let mut input = sender.stdin.take().unwrap();
    input.write_all(b"hello").unwrap();
    receiver.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    sender.stdin = Some(input);
    let (code, _, errors) = finish(sender, &vec![0; 10_000_000]);
    assert_eq!(code, Some(3), "{errors}");
    assert!(errors.contains("broken pipe"), "{errors}");
}

fn await_no_file(path: &str) {
    let give_up = Instant::now() + LIMIT;
    while PathBuf::from(path).exists() {
        assert!(Instant::now() < give_up, "{path} does not go");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_name_that_is_in_use_is_refused() {
    let name = name("used");
    let mut first = start(&["recv", &name]);
    await_file(&name);
    let (code, _, errors) = finish(start(&["recv", &name]), b"");
    assert_eq!(code, Some(1));
    assert!(errors.contains("in use"), "{errors}");
    assert_eq!(finish(start(&["send", &name]), b"for the first").0, Some(0));
    let mut received = String::new();
    first.stdout.take().unwrap().read_to_string(&mut received).unwrap();
    assert_eq!(received, "for the first");
    assert!(first.wait().unwrap().success());
}

#[test]
fn a_queue_takes_from_all_senders_and_gives_each_message_to_one_receiver() {
    let name = name("queue");
    let mut queue = start(&["queue", &name]);
    let receivers: Vec<Child> = (0..2).map(|_| start(&["recv", &name, "--shared", "--lines"])).collect();
    receivers.iter().for_each(await_joined);
    let senders: Vec<_> = (0..3)
        .map(|number| {
            let name = name.clone();
            thread::spawn(move || {
                let lines: Vec<String> = (0..100).map(|i| format!("{}\n", number * 100 + i)).collect();
                finish(start(&["send", &name, "--shared", "--lines"]), lines.concat().as_bytes())
            })
        })
        .collect();
    for sender in senders {
        let (code, _, errors) = sender.join().unwrap();
        assert_eq!(code, Some(0), "{errors}");
    }
    // Nobody else can come, so what was sent is all.
    queue.kill().unwrap();
    queue.wait().unwrap();
    let mut lines = Vec::new();
    for receiver in receivers {
        let (code, output, errors) = finish(receiver, b"");
        assert_eq!(code, Some(0), "{errors}");
        lines.extend(String::from_utf8(output).unwrap().lines().map(|line| line.parse::<u32>().unwrap()));
    }
    lines.sort_unstable();
    assert_eq!(lines, (0..300).collect::<Vec<_>>());
    // What the killed one left.
    assert_eq!(finish(start(&["recv", &name, "--timeout", "1s"]), b"").0, Some(4));
    assert!(!PathBuf::from(&name).exists());
}

#[test]
fn sides_that_take_the_stream_for_different_things_refuse_each_other() {
    for (sends, receives) in [("--lines", "--quiet"), ("--quiet", "--lines"), ("--frames", "--lines")] {
        let name = name("modes");
        let receiver = start(&["recv", &name, receives]);
        let (code, _, errors) = finish(start(&["send", &name, sends]), b"\0\0\0\0");
        assert_eq!(code, Some(3), "{errors}");
        let (code, output, errors) = finish(receiver, b"");
        assert_eq!((code, output.as_slice()), (Some(1), &b""[..]));
        assert!(errors.contains("the other side is `ringpipe send"), "{errors}");
    }
}

#[test]
fn a_sender_that_waits_for_its_input_notices_that_its_receiver_is_killed() {
    for mode in ["--quiet", "--lines"] {
        let name = name("idle");
        let mut receiver = start(&["recv", &name, mode]);
        let mut sender = start(&["send", &name, mode]);
        let mut input = sender.stdin.take().unwrap();
        input.write_all(b"one\n").unwrap();
        receiver.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        receiver.kill().unwrap();
        receiver.wait().unwrap();
        assert_eq!(await_end(&mut sender, LIMIT).code(), Some(3), "{mode}");
    }
}

#[test]
fn files_that_do_not_wait_are_waited_for() {
    use rustix::pipe::{PipeFlags, pipe_with};
    for mode in ["--quiet", "--lines"] {
        let name = name("nonblocking");
        let program = |command: &str| {
            let mut program = Command::new(env!("CARGO_BIN_EXE_ringpipe"));
            program.args([command, &name, mode]).stderr(Stdio::piped());
            program
        };
        let (from, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut sender = program("send").stdin(from).spawn().unwrap();
        let (out, to) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut receiver = program("recv").stdout(to).spawn().unwrap();
        // By then, the one waits for something to read; later, the other for room.
        thread::sleep(Duration::from_millis(100));
        let bytes = [b"0123456789abcde\n".as_slice(); 100_000].concat();
        let expected = bytes.clone();
        let blocking = |end: &std::os::fd::OwnedFd| rustix::io::ioctl_fionbio(end, false).unwrap();
        blocking(&into);
        let writer = thread::spawn(move || File::from(into).write_all(&bytes));
        thread::sleep(Duration::from_millis(300));
        blocking(&out);
        let mut received = Vec::new();
        File::from(out).read_to_end(&mut received).unwrap();
        assert!(received == expected, "{} bytes arrived", received.len());
        writer.join().unwrap().unwrap();
        assert!(await_end(&mut sender, LIMIT).success() && await_end(&mut receiver, LIMIT).success());
    }
}

#[test]
fn of_a_queue_a_killed_receiver_loses_one_message_at_most() {
    const LINES: usize = 20_000;
    let name = name("robbed");
    let mut queue = start(&["queue", &name]);
    let args = ["recv", name.as_str(), "--shared", "--lines"];
    let mut first = start(&args);
    await_joined(&first);
    let lines: Vec<String> = (0..LINES).map(|i| format!("{i}\n")).collect();
    let sender = start(&["send", &name, "--shared", "--lines"]);
    let sending = thread::spawn(move || finish(sender, lines.concat().as_bytes()).0);
    let mut output = first.stdout.take().unwrap();
    output.read_exact(&mut [0; 1000]).unwrap();
    // It is stuck in the middle by now, as nobody reads on.
    let second = start(&args);
    await_joined(&second);
    let others = thread::spawn(move || finish(second, b""));
    first.kill().unwrap();
    first.wait().unwrap();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert_eq!(sending.join().unwrap(), Some(0));
    queue.kill().unwrap();
    queue.wait().unwrap();
    let (code, others, errors) = others.join().unwrap();
    assert_eq!(code, Some(0), "{errors}");
    // Of the last line that the first one wrote, there may be a part only.
    let ends = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
    let lines: usize = (0..LINES)
        .map(|i| i.to_string().len() + 1)
        .scan(0, |sum, len| {
            *sum += len;
            Some(*sum)
        })
        .take_while(|&sum| sum <= 1000)
        .count();
    let received = lines + ends(&rest) + ends(&others);
    assert!((LINES - 1..=LINES).contains(&received), "{received} of {LINES} lines");
    finish(start(&["recv", &name, "--timeout", "1s"]), b"");
}

/// Sends for a while with a terminal as standard error: what was written there.
fn shown_on_a_terminal(of: &str, options: &[&str], lasting: Duration) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let terminal = ptsname(&screen, Vec::new()).unwrap().into_string().unwrap();
    let terminal = File::options().read(true).write(true).open(terminal).unwrap();

    let name = name(of);
    let receiver = start(&["recv", &name]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpipe"));
    command.args(["send", &name]).args(options).stdin(Stdio::piped()).stderr(terminal);
    let mut sender = command.spawn().unwrap();
    drop(command); // it holds the terminal open
    let mut input = sender.stdin.take().unwrap();
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < lasting {
        input.write_all(&[1; 1000]).unwrap();
        sent += 1000;
        thread::sleep(Duration::from_millis(10));
    }
    drop(input);
    assert!(await_end(&mut sender, LIMIT).success());
    assert_eq!(finish(receiver, b"").1.len(), sent);
    let (mut shown, mut screen) = (Vec::new(), File::from(screen));
    // A terminal that nobody has open any more ends with an error.
    let _ = screen.read_to_end(&mut shown);
    String::from_utf8(shown).unwrap()
}

#[test]
fn progress_is_shown_on_a_terminal_if_it_takes_long() {
    let shown = shown_on_a_terminal("progress", &[], Duration::from_millis(1500));
    let lines: Vec<&str> = shown.split('\r').collect();
    // One refresh every 100 ms from 500 ms on, and what ends the line.
    assert!((3..=16).contains(&lines.len()), "{shown:?}");
    assert!(lines[1..lines.len() - 1].iter().all(|line| line.contains("B, ") && line.contains("B/s")), "{shown:?}");
    assert!(shown.ends_with('\n') && shown.matches('\n').count() == 1, "{shown:?}");
    assert_eq!(shown_on_a_terminal("short", &[], Duration::from_millis(100)), "");
    assert_eq!(shown_on_a_terminal("quiet", &["--quiet"], Duration::from_millis(1000)), "");
}
