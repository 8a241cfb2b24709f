//! `ringpipe completions` and `ringpipe man`: what shells and `man` want to know, made from the definition of the arguments.

use std::io::{self, Write};

use clap::Command;
use clap::error::ErrorKind;
use clap_complete::Shell;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) const COMPLETIONS_HELP: &str = "\
Where it belongs:
  bash  ~/.local/share/bash-completion/completions/ringpipe
  zsh   _ringpipe, in a directory of $fpath
  fish  ~/.config/fish/completions/ringpipe.fish";

#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// The subcommand, such as `send`; without one, the page of the whole command
    subcommand: Option<String>,
}

pub(crate) fn completions(args: &CompletionsArgs, command: Command) -> io::Result<()> {
    // Shells would offer what is hidden as well.
    let visible = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    let mut visible = Command::new("ringpipe").version(VERSION).args(command.get_arguments()).subcommands(visible);
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut visible, "ringpipe", &mut text);
    io::stdout().write_all(&text)
}

pub(crate) fn page(args: &ManArgs, mut command: Command) -> io::Result<()> {
    // Gives subcommands their full names.
    command.build();
    let page = match &args.subcommand {
        None => command,
        Some(name) => match command.find_subcommand(name).filter(|found| !found.is_hide_set()) {
            Some(found) => found.clone(),
            None => command.error(ErrorKind::InvalidSubcommand, format!("there is no subcommand `{name}`")).exit(),
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).source(format!("ringpipe {VERSION}")).render(&mut text)?;
    io::stdout().write_all(&text)
}
