//! `ringpipe completions` and `ringpipe man`, run as a user runs them.

use std::process::{Command, Output};

const SUBCOMMANDS: &[&str] = &[
    "send",
    "recv",
    "queue",
    #[cfg(feature = "bridge")]
    "bridge",
    "ls",
    "top",
    "bench",
    "soak",
    "completions",
    "man",
];

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpipe")).args(args).output().unwrap()
}

fn printed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_shell_is_told_the_subcommands_and_nothing_hidden() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = printed(&["completions", shell]);
        for name in SUBCOMMANDS {
            assert!(text.contains(name), "{shell} is not told of {name}");
        }
        assert!(text.contains("interval") && text.contains("timeout"), "{shell} is not told of the options");
        assert!(!text.contains("soak-worker") && !text.contains("soak-side"), "{shell} is told what is hidden");
    }
    assert_eq!(run(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn bash_completes_subcommands_and_options() {
    if Command::new("bash").arg("--version").output().is_err() {
        eprintln!("skipped: there is no bash");
        return;
    }
    let script = "source /dev/stdin; COMP_WORDS=(ringpipe \"$@\"); COMP_CWORD=$#; _ringpipe ringpipe \"${!#}\" ringpipe; echo \"${COMPREPLY[*]}\"";
    let complete = |words: &[&str]| {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", script, "bash"]).args(words);
        bash.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = bash.spawn().unwrap();
        let text = printed(&["completions", "bash"]);
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete(&["so"]), "soak");
    assert_eq!(complete(&["send", "--li"]), "--lines");
}

#[test]
fn there_is_a_page_for_the_command_and_for_each_subcommand() {
    let page = printed(&["man"]);
    for section in [".TH ringpipe 1", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS", ".SH SUBCOMMANDS"] {
        assert!(page.contains(section), "no {section} in {page}");
    }
    for name in SUBCOMMANDS {
        assert!(page.contains(&format!("ringpipe\\-{name}(1)")), "{name} is not in {page}");
        let page = printed(&["man", name]);
        for part in [&format!(".TH ringpipe-{name} 1"), ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS"] {
            assert!(page.contains(part), "no {part} in {page}");
        }
    }
    assert!(printed(&["man", "send"]).contains("Exit codes"), "what stands under the options");
    for unknown in ["nothing", "soak-worker"] {
        let output = run(&["man", unknown]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
    }
}
