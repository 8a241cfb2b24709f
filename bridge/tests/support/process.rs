//! Bridges in processes of their own: the program of the tests, started again with one "test" to run, which is to be a bridge. Each file of tests that starts some has that test.

use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use ringpipe_bridge::{Bridge, Direction, stop_lingering, zenoh_runtime};

use super::builder;

const TEST: &str = "a_bridge_that_can_be_killed";
/// What it is to do: a word, an endpoint, its patience in milliseconds, and a local name.
const ORDER: &str = "RINGPIPE_BRIDGE_TEST_ORDER";

pub struct Killable(pub Child);

pub fn spawn(what: &str, endpoint: &str, name: &Path, patience: Duration) -> Killable {
    spawn_by(Command::new(std::env::current_exe().unwrap()), what, endpoint, name, patience)
}

/// The same with a command that runs this program somewhere else.
pub fn spawn_by(mut command: Command, what: &str, endpoint: &str, name: &Path, patience: Duration) -> Killable {
    command.args([TEST, "--exact", "--ignored", "--nocapture"]).stdout(Stdio::null());
    // As `ringpipe bridge` does.
    command.envs(zenoh_runtime().map(|threads| ("ZENOH_RUNTIME", threads)));
    command.env(ORDER, format!("{what} {endpoint} {} {}", patience.as_millis(), name.display()));
    Killable(command.spawn().unwrap())
}

impl Killable {
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Is a bridge until it is killed, or the test that has started it is gone.
pub fn play() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let words: Vec<&str> = order.splitn(4, ' ').collect();
    let (what, endpoint, name) = (words[0], words[1], words[3]);
    let builder = builder("killable").patience(Duration::from_millis(words[2].parse().unwrap()));
    let open = |connects: bool| {
        let builder = if connects { builder.connect(endpoint) } else { builder.listen(endpoint) };
        builder.open().unwrap()
    };
    let _bridge: Bridge = match what {
        "export" => {
            let bridge = open(false);
            bridge.export(name, "jobs").unwrap();
            bridge
        }
        "import" => {
            let bridge = open(true);
            bridge.import(name, "jobs").unwrap();
            bridge
        }
        "take" => {
            let bridge = open(true);
            bridge.import_queue(name, "jobs", Direction::Take, Some(4)).unwrap();
            bridge
        }
        _ => panic!("an order that nobody gives: {order}"),
    };
    let parent = parent_id();
    while parent_id() == parent {
        stop_lingering().unwrap();
        thread::sleep(Duration::from_millis(100));
    }
}
