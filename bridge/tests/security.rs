//! Who is let in: a bridge that was told nothing is reached from this machine only, and with certificates of both sides strangers are kept out.
#![cfg(feature = "tls")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ringpipe::{Connection, Listener, RecvError, connect};
use ringpipe_bridge::{Bridge, Builder};
use support::{LONG, Names, builder, port};

/// Runs `openssl` in a directory. False if there is none.
fn openssl(directory: &Path, arguments: &str) -> bool {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) => {
            assert!(status.success(), "openssl {arguments}: {status}");
            true
        }
        Err(_) => false,
    }
}

/// An authority, and a certificate for this machine that it has signed: `NAME-ca.pem`, `NAME.pem` and `NAME.key`.
fn certificate(directory: &Path, name: &str) -> bool {
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(directory, &format!("req -x509 {key} -keyout {name}-ca.key -out {name}-ca.pem -days 2 -subj /CN={name}-ca"))
        && openssl(directory, &format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"))
        && openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA {name}-ca.pem -CAkey {name}-ca.key -CAcreateserial -out {name}.pem -days 2 -extfile names"
            ),
        )
}

/// With the certificate of `name`, trusting the authority of `trusted`, and asking for the other side's.
fn mutual(builder: Builder, directory: &Path, name: &str, trusted: &str) -> Builder {
    let file = |name: String| format!("{:?}", directory.join(name));
    let settings = [
        ("root_ca_certificate", file(format!("{trusted}-ca.pem"))),
        ("listen_certificate", file(format!("{name}.pem"))),
        ("listen_private_key", file(format!("{name}.key"))),
        ("connect_certificate", file(format!("{name}.pem"))),
        ("connect_private_key", file(format!("{name}.key"))),
        ("enable_mtls", "true".to_owned()),
    ];
    settings
        .into_iter()
        .fold(builder, |builder, (path, value)| builder.set(format!("transport/link/tls/{path}"), value))
}

#[test]
fn with_certificates_of_both_sides_messages_go_through_and_strangers_do_not() {
    let names = Names::new();
    if !certificate(names.path(), "ours") || !certificate(names.path(), "strange") {
        eprintln!("!!! SKIPPED: there is no openssl to make certificates with");
        return;
    }
    let endpoint = format!("tls/localhost:{}", port());
    let mut listener = Listener::bind(names.of("home")).unwrap();
    let home = mutual(builder("home"), names.path(), "ours", "ours").listen(&endpoint).open().unwrap();
    home.export(names.of("home"), "jobs").unwrap();

    let away = mutual(builder("away"), names.path(), "ours", "ours").connect(&endpoint).open().unwrap();
    away.import(names.of("away"), "jobs").unwrap();
    let mut client: Connection = connect(names.of("away"), LONG).unwrap();
    let (mut server, _) = listener.accept_timeout(LONG).unwrap();
    client.send_bytes(b"in secret").unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"in secret");

    // One who trusts us, and shows a certificate that we do not trust; and one who shows none.
    let patience = Duration::from_secs(2);
    let strange = mutual(builder("strange").patience(patience), names.path(), "strange", "ours");
    let authority = format!("{:?}", names.of("ours-ca.pem"));
    let silent = builder("silent").patience(patience).set("transport/link/tls/root_ca_certificate", authority);
    for (name, stranger) in [("strange", strange), ("silent", silent)] {
        let stranger = stranger.connect(&endpoint).open().unwrap();
        stranger.import(names.of(name), "jobs").unwrap();
        let mut client: Connection = connect(names.of(name), LONG).unwrap();
        assert!(matches!(client.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)), "{name} was let in");
    }
    assert!(listener.try_accept().is_err(), "a stranger got through to the listener");
}

/// Addresses that this process listens to by TCP, as the kernel writes them.
fn listening() -> Vec<String> {
    let own: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok())
        .collect();
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|table| {
            std::fs::read_to_string(table).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_ours = own.contains(&format!("socket:[{}]", words.get(9)?));
            (words[3] == "0A" && is_ours).then(|| words[1].to_owned())
        })
        .collect()
}

#[test]
fn a_bridge_that_was_told_nothing_listens_on_this_machine_only() {
    let before = listening();
    let bridge = match Bridge::builder().open() {
        Ok(bridge) => bridge,
        Err(e) => {
            eprintln!("!!! SKIPPED: the default's port is in use: {e}");
            return;
        }
    };
    let new: Vec<String> = listening().into_iter().filter(|address| !before.contains(address)).collect();
    // 127.0.0.1, port 7447; other tests of this process listen on this machine as well.
    assert!(new.iter().any(|address| address == "0100007F:1D17"), "{new:?}");
    assert!(new.iter().all(|address| address.starts_with("0100007F:") || address.starts_with("00000000000000000000000001000000:")));
    drop(bridge);

    // One that connects does not listen at all: nothing is added but what other tests listen to meanwhile.
    let before = listening();
    let _bridge = Bridge::builder().connect("tcp/127.0.0.1:1").open().unwrap();
    let new = listening().into_iter().filter(|address| !before.contains(address));
    assert!(new.into_iter().all(|address| address.starts_with("0100007F:")));
}
