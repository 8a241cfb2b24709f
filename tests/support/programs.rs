//! Tests in which another program takes part: this test binary, run again to play a role.
//!
//! Such a binary has a test `as_another_program`, which does nothing unless it is given a role:
//!
//! ```ignore
//! #[test]
//! fn as_another_program() {
//!     match role().as_deref() {
//!         None => {}
//!         Some("echo") => ...,
//!         Some(role) => panic!("unknown role {role}"),
//!     }
//! }
//! ```

use std::process::{Command, Stdio};

const ROLE: &str = "RINGPIPE_TEST_ROLE";
/// The variable in which it finds what it inherits.
pub(crate) const PIPE: &str = "RINGPIPE_TEST_PIPE";

/// Has a test binary run one of its tests and nothing else.
pub(crate) fn run_only(command: &mut Command, test: &str) {
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).stdin(Stdio::null()).stdout(Stdio::null());
}

/// This test binary, to be run again as a program that plays `role`.
pub(crate) fn program(role: &str) -> Command {
    let mut command = super::command(std::env::current_exe().unwrap());
    run_only(&mut command, "as_another_program");
    command.env(ROLE, role);
    command
}

/// The role that this process has to play, if it is such a program; it then has 30 seconds.
pub(crate) fn role() -> Option<String> {
    let role = std::env::var(ROLE).ok()?;
    // SAFETY: no preconditions.
    unsafe { libc::alarm(30) };
    Some(role)
}
