//! An echo server in a process of its own: waiting with `poll`, end of file, messages that are too long and buffers that are too short.
//!
//! ```sh
//! cargo run --example echo
//! ```

use std::error::Error;
use std::process::{Child, Command};
use std::time::Duration;

use ringpipe::{Connection, End, RecvError, RecvIntoError, SendError};

/// The longest message the server takes.
const MAX: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("server") => server(),
        _ => {
            polite_client()?;
            rude_client()
        }
    }
}

fn server() -> Result<(), Box<dyn Error>> {
    let mut conn = Connection::from_env("ECHO_PIPE")?;
    loop {
        match conn.recv_bytes_max(MAX) {
            Ok(message) => conn.send_bytes(&message)?,
            Err(RecvError::Disconnected) => {
                println!("server: end of file");
                return Ok(());
            }
            // A limit protects us from clients that send more than we are willing to hold. The message is not taken, and this end
            // receives no more; the other direction still works, so we can say why.
            Err(e @ RecvError::TooLong { .. }) => {
                conn.send_bytes(format!("refused: {e}").as_bytes())?;
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn start_server() -> Result<(Child, Connection), Box<dyn Error>> {
    let (mine, theirs) = ringpipe::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("server");
    theirs.inherit(&mut command, "ECHO_PIPE");
    // The command, and with it our copy of the server's end, is dropped at the end of this function.
    Ok((command.spawn()?, mine))
}

fn polite_client() -> Result<(), Box<dyn Error>> {
    let (mut child, mut conn) = start_server()?;

    // Nothing was sent, so nothing comes back. `poll` tells without taking anything.
    println!("client: before the first request, poll says {}", conn.poll(Some(Duration::ZERO))?);
    conn.send_bytes(b"hello")?;
    println!("client: after it, poll says {}", conn.poll(Some(Duration::from_secs(20)))?);
    println!("client: received {:?}", String::from_utf8(conn.recv_bytes()?)?);

    // Receiving into a buffer of our own saves the allocation. If the message does not fit, nothing is lost: it is in the error.
    conn.send_bytes(b"longer than eight bytes")?;
    let mut buffer = [0; 8];
    match conn.recv_bytes_into(&mut buffer, 0) {
        Err(RecvIntoError::TooShort(e)) => {
            println!("client: only {} bytes free, for {:?}", e.room, String::from_utf8(e.message)?);
        }
        other => return Err(format!("expected a short buffer, got {other:?}").into()),
    }

    // Closing our end is the server's end of file.
    conn.close();
    if child.wait()?.success() { Ok(()) } else { Err("the server failed".into()) }
}

fn rude_client() -> Result<(), Box<dyn Error>> {
    let (mut child, mut conn) = start_server()?;
    match conn.send_bytes(&[b'x'; 2 * MAX]) {
        // The server may hang up while we are still sending, or just after.
        Ok(()) | Err(SendError::Disconnected) => {}
        Err(e) => return Err(e.into()),
    }
    println!("client: the server says: {}", String::from_utf8(conn.recv_bytes()?)?);
    // Everything that was sent comes before end of file; and end of file is all that comes after it, at each try.
    for _ in 0..2 {
        match conn.recv_bytes() {
            Err(RecvError::Disconnected) => println!("client: end of file"),
            other => return Err(format!("expected end of file, got {other:?}").into()),
        }
    }
    match conn.send_bytes(b"anyone there?") {
        Err(e @ SendError::Disconnected) => println!("client: {e}"),
        other => return Err(format!("expected a broken pipe, got {other:?}").into()),
    }
    if child.wait()?.success() { Ok(()) } else { Err("the server failed".into()) }
}
