//! Two bridges in network namespaces of their own, as on two machines, on a line that delays and drops packets and goes down for seconds. Where namespaces cannot be made, that is said, and
//! nothing is tested.

mod support;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::{Connection, Listener, RecvError, connect};
use support::process::spawn_by;
use support::{LONG, Names, message};

#[test]
#[ignore = "no test: the bridge that the others start"]
fn a_bridge_that_can_be_killed() {
    support::process::play();
}

/// Runs `ip` or `tc`. Whether it did what it was asked to.
fn run(words: &str) -> bool {
    let words: Vec<&str> = words.split(' ').collect();
    let status = Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Two namespaces with a line between them.
struct Line {
    names: [String; 2],
}

impl Line {
    fn new() -> Option<Line> {
        let line = Line { names: ["a", "b"].map(|side| format!("ringpipe-{}-{side}", std::process::id())) };
        let [a, b] = &line.names;
        let made = run(&format!("ip netns add {a}"))
            && run(&format!("ip netns add {b}"))
            && run(&format!("ip -n {a} link add line type veth peer name line netns {b}"))
            && run(&format!("ip -n {a} addr add 10.77.0.1/24 dev line"))
            && run(&format!("ip -n {b} addr add 10.77.0.2/24 dev line"))
            && line.names.iter().all(|name| run(&format!("ip -n {name} link set line up")));
        made.then_some(line)
    }

    /// How each end treats the packets that it sends. Whether that can be had.
    fn treat(&self, how: &str) -> bool {
        self.names.iter().all(|name| run(&format!("tc -n {name} qdisc replace dev line root netem {how}")))
    }

    fn set(&self, state: &str) {
        assert!(run(&format!("ip -n {} link set line {state}", self.names[0])));
    }

    /// This program, in one of the namespaces.
    fn command(&self, side: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[side]]).arg(std::env::current_exe().unwrap());
        command
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        for name in &self.names {
            run(&format!("ip netns del {name}"));
        }
    }
}

#[test]
fn a_bad_line_that_goes_down_for_seconds_loses_nothing() {
    let Some(line) = Line::new() else {
        eprintln!("!!! SKIPPED: this process may not make network namespaces, or there is no `ip`");
        return;
    };
    if !line.treat("delay 15ms 5ms loss 1%") {
        eprintln!("!!! SKIPPED, in part: there is no netem, so the line is a good one that goes down");
    }
    const COUNT: u64 = 1500;
    const ENDPOINT: &str = "tcp/10.77.0.1:7447";
    let (names, patience) = (Names::new(), Duration::from_secs(20));
    let mut listener = Listener::bind(names.of("home")).unwrap();
    let _home = spawn_by(line.command(0), "export", ENDPOINT, &names.of("home"), patience);
    let _away = spawn_by(line.command(1), "import", ENDPOINT, &names.of("away"), patience);
    let mut client: Connection = connect(names.of("away"), LONG).unwrap();
    let (server, _) = listener.accept_timeout(LONG).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        // So that it is closed if an assertion fails, or who sends would wait for ever.
        let mut server = server;
        scope.spawn(|| {
            for number in 0..COUNT {
                client.send_bytes(&message(number)).unwrap();
                thread::sleep(Duration::from_millis(5));
            }
            drop(client);
        });
        scope.spawn(|| {
            for seconds in [1, 4] {
                thread::sleep(Duration::from_secs(1));
                line.set("down");
                thread::sleep(Duration::from_secs(seconds));
                line.set("up");
            }
        });
        for number in 0..COUNT {
            assert!(server.recv_bytes_timeout(LONG).unwrap() == message(number), "message {number} is wrong");
        }
        assert!(matches!(server.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    });
    assert!(start.elapsed() >= Duration::from_secs(5), "it was over before the line went down");
}
