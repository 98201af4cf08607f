//! `weir profile`: what a worker or router spends its processor time on, or what holds its memory.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::Output;
use super::{block_on, remark};
use crate::client::operations::{Operations, ProfileForm};
use crate::telemetry::profile::{DEFAULT_SECONDS, MAX_HZ, MAX_SECONDS};

/// Flags of `weir profile`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Who may is set by worker.profile_from and router.profile_from: by default, callers on the same \
machine. One profile at a time in a process. docs/profiling.md says what reads the files.

Examples:
  weir profile 127.0.0.1:7401 --seconds 30 -o flame.svg
  weir profile 127.0.0.1:7401 -o worker.pb.gz && go tool pprof -http : worker.pb.gz
  weir profile 127.0.0.1:7401 --heap -o heap.pb.gz"
)]
pub(super) struct Args {
    /// The gRPC address of a worker or router: HOST:PORT or http://HOST:PORT.
    #[arg(value_name = "WORKER")]
    address: String,
    /// How long to sample.
    #[arg(long, short, default_value_t = DEFAULT_SECONDS as u32, value_parser = clap::value_parser!(u32).range(1..=MAX_SECONDS as i64))]
    seconds: u32,
    /// Samples per second of processor time.
    #[arg(long, default_value_t = MAX_HZ, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_HZ)))]
    hz: u32,
    /// Where to: a file that ends in .svg (a flame graph) or in .pb.gz (pprof's format); - for standard output.
    #[arg(long, short, value_name = "FILE")]
    output: Output,
    /// What to write where the file's name does not say so; for standard output, a flame graph unless it is the heap.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// What holds memory now, instead of what takes processor time; in pprof's format.
    #[arg(long, conflicts_with_all = ["seconds", "hz"])]
    heap: bool,
    /// Replaces a file that exists.
    #[arg(long)]
    force: bool,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A flame graph for a browser.
    Svg,
    /// Pprof's format.
    Pprof,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let form = form(args)?;
    args.output.check(args.force)?;
    block_on(async {
        let server = Operations::new(&args.address)?;
        let bar = bar(args, server.endpoint());
        let mut taking = std::pin::pin!(server.profile(form, args.seconds, args.hz));
        let taken = loop {
            tokio::select! {
                taken = &mut taking => break taken,
                () = tokio::time::sleep(Duration::from_secs(1)) => bar.inc(1),
            }
        };
        bar.finish_and_clear();
        let profile = taken?;
        args.output.write_bytes(&profile, args.force)?;
        if let Output::File(path) = &args.output {
            remark(format_args!("weir: {} has {} bytes", path.display(), profile.len()));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// What to ask for: as the flags say, or else the file's name.
fn form(args: &Args) -> anyhow::Result<ProfileForm> {
    let by_name = match &args.output {
        Output::Standard => None,
        Output::File(path) => match path.to_string_lossy() {
            name if name.ends_with(".svg") => Some(Format::Svg),
            name if [".pb.gz", ".pprof", ".pb"].iter().any(|end| name.ends_with(end)) => Some(Format::Pprof),
            _ if args.format.is_none() && !args.heap => {
                bail!(
                    "--output {} does not say what to write: end it in .svg or .pb.gz, or give --format",
                    path.display()
                )
            }
            _ => None,
        },
    };
    if let (Some(by_name), Some(format)) = (by_name, args.format)
        && by_name != format
    {
        bail!("--output {} and --format say different things: leave --format out, or name the file by it", args.output);
    }
    match (args.heap, args.format.or(by_name)) {
        (true, Some(Format::Svg)) => bail!("a heap profile is in pprof's format: end --output in .pb.gz"),
        (true, _) => Ok(ProfileForm::Heap),
        (false, Some(Format::Pprof)) => Ok(ProfileForm::Pprof),
        (false, Some(Format::Svg) | None) => Ok(ProfileForm::FlameGraph),
    }
}

/// Shows on a terminal how much of the time is over.
fn bar(args: &Args, endpoint: &str) -> ProgressBar {
    let seconds = if args.heap { 0 } else { u64::from(args.seconds) };
    let bar = ProgressBar::new(seconds);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len} s, {msg}") {
        bar.set_style(style);
    }
    bar.set_message(format!("profiling {endpoint}"));
    bar
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn asked(flags: &str) -> Result<ProfileForm, String> {
        let words = ["profile", "127.0.0.1:1"].into_iter().chain(flags.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        form(&line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_files_name_says_what_is_written() {
        for (flags, expected) in [
            ("-o flame.svg", ProfileForm::FlameGraph),
            ("-o -", ProfileForm::FlameGraph),
            ("-o - --format pprof", ProfileForm::Pprof),
            ("-o w1.pb.gz", ProfileForm::Pprof),
            ("-o w1 --format svg", ProfileForm::FlameGraph),
            ("-o - --heap", ProfileForm::Heap),
            ("-o heap --heap", ProfileForm::Heap),
        ] {
            assert_eq!(asked(flags), Ok(expected), "{flags}");
        }
        for (flags, says) in [
            ("-o flame.png", "end it in .svg or .pb.gz"),
            ("-o heap.svg --heap", "in pprof's format"),
            ("-o w1.pb.gz --format svg", "--output w1.pb.gz and --format say different things"),
            ("-o w1.svg --format pprof", "--output w1.svg and --format say different things"),
            ("", "--output <FILE>"),
            ("-o - --seconds 0", "0 is not in 1..=300"),
            ("-o - --hz 100", "100 is not in 1..=99"),
        ] {
            let error = asked(flags).expect_err(flags);
            assert!(error.contains(says), "{flags}: {error}");
        }
    }
}
