//! `weir drain`: has one worker or router end in order, from afar.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::table::counted;
use super::{block_on, print};
use crate::client::operations::{Operations, OperationsError};

/// How often `--wait` looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How much longer than the server said `--wait` waits.
const WAIT_MARGIN: Duration = Duration::from_secs(5);

/// Flags of `weir drain`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It does what SIGTERM does: no more tasks are taken, what runs is finished, and the process exits. \
Who may is set by worker.drain_from and router.drain_from: by default, callers on the same machine.

Examples:
  weir drain 127.0.0.1:7401
  weir drain 127.0.0.1:7401 --wait"
)]
pub(super) struct Args {
    /// The gRPC address of a worker or router: HOST:PORT or http://HOST:PORT.
    address: String,
    /// Waits until it no longer serves, and shows what is left.
    #[arg(long)]
    wait: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let server = Operations::new(&args.address)?;
        let reply = server.drain().await?;
        let verb = if reply.was_draining { "was draining already" } else { "drains" };
        let (endpoint, in_flight) = (server.endpoint(), counted(reply.in_flight.into(), "task"));
        print(&format!("{endpoint} {verb}: {in_flight} in flight, at most {:.0} s", reply.at_most_seconds))?;
        if args.wait {
            let at_most = Duration::try_from_secs_f64(reply.at_most_seconds).unwrap_or_default();
            let took = wait(&server, reply.in_flight, at_most + WAIT_MARGIN).await?;
            print(&format!("{endpoint} no longer serves, after {:.1} s", took.as_secs_f64()))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Waits until nobody listens there any more, or somebody else does: a supervisor may have started another one.
async fn wait(server: &Operations, in_flight: u32, within: Duration) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let bar = ProgressBar::new(in_flight.into());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg}") {
        bar.set_style(style);
    }
    let mut left = in_flight;
    loop {
        match server.describe(1).await {
            Ok(description) if !description.draining => break,
            Ok(description) => left = description.in_flight,
            Err(OperationsError::Unreachable { .. }) => break,
            // The server is just closing its connections.
            Err(_) => {}
        }
        bar.set_position(in_flight.saturating_sub(left).into());
        bar.set_message(format!("{} in flight", counted(left.into(), "task")));
        if started.elapsed() > within {
            bar.finish_and_clear();
            let (endpoint, seconds) = (server.endpoint(), within.as_secs());
            bail!("{endpoint} still serves after {seconds} s, with {} in flight", counted(left.into(), "task"));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    bar.finish_and_clear();
    Ok(started.elapsed())
}
