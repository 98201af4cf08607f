//! `weir completion`: a script with which a shell completes weir's commands and flags.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, print};

/// Flags of `weir completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = r#"Examples:
  source <(weir completion bash)
  weir completion bash > ~/.local/share/bash-completion/completions/weir
  weir completion zsh > ~/.zfunc/_weir
  weir completion fish > ~/.config/fish/completions/weir.fish"#)]
pub(super) struct Args {
    /// The shell to write it for.
    shell: Shell,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weir", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}
