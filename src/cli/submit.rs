//! `weir submit`: tasks as JSON lines in, outcomes as JSON lines out.

mod line;
mod summary;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::stream::{self, Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncSeekExt, BufReader};

use super::{block_on, remark};
use crate::client::{Client, Submission};
use crate::task::{IntegrationName, Json, Priority};
use line::{Answer, Defaults, Numbered};
use summary::Summary;
pub(super) use summary::quantile;

/// The longest line that is read; a task's input is at most 1 MiB, and its line may escape it.
const MAX_LINE_BYTES: usize = 8 << 20;

/// Flags of `weir submit`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = r#"Each line is a JSON object: "integration" and "input", and if you like "id", "tenant", "priority"
("interactive" or "batch") and "timeout" ("30s"). Flags give what a line leaves out. Each answer names its "line".

Examples:
  weir submit tasks.jsonl > outcomes.jsonl
  echo '{"integration":"bank","input":{"customer":"c1"}}' | weir submit -
  weir submit --integration bank --input '{"customer":"c1"}' --priority interactive"#
)]
pub(super) struct Args {
    /// The file with the tasks, or a pipe; - for standard input.
    #[arg(value_name = "FILE.jsonl", required_unless_present = "input")]
    file: Option<PathBuf>,
    /// The router, or a worker, to submit to.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7400")]
    to: String,
    /// Tasks that are under way at the same time.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: u32,
    /// The integration of lines that name none.
    #[arg(long, value_name = "NAME")]
    integration: Option<IntegrationName>,
    /// Submits one task with this JSON input, instead of a file.
    #[arg(long, value_name = "JSON", conflicts_with = "file", requires = "integration")]
    input: Option<String>,
    /// The priority of lines that name none.
    #[arg(long, value_name = "PRIORITY", default_value = "batch", value_parser = parse_priority)]
    priority: Priority,
    /// The timeout of lines that name none, waiting and retries included.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration,
          allow_hyphen_values = true)]
    timeout: Duration,
}

fn parse_priority(text: &str) -> Result<Priority, String> {
    let known = Priority::ALL.into_iter().find(|priority| priority.as_str() == text);
    known.ok_or_else(|| "use interactive or batch".to_owned())
}

/// A line's text, or why it is none; the stream ends with the first error of its source.
type Lines = Pin<Box<dyn Stream<Item = io::Result<Result<String, Unreadable>>> + Send>>;

/// Why a line is no text. The lines after it are read as if it were one that is no JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Unreadable {
    #[error("not a task: the line has over {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("not a task: the line is not UTF-8")]
    NotUtf8,
}

fn is_blank(line: &Result<String, Unreadable>) -> bool {
    line.as_ref().is_ok_and(|line| line.trim().is_empty())
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let defaults = Defaults { integration: args.integration, priority: args.priority, timeout: args.timeout };
    let client_address = args.to.clone();
    block_on(async move {
        let client = Client::new(&client_address)?;
        let (lines, total) = open(args.file, args.input).await?;
        let bar = progress_bar(total);
        let summary = submit_all(client, lines, &defaults, args.concurrency as usize, &bar).await;
        bar.finish_and_clear();
        let summary = summary?;
        remark(&summary);
        Ok(if summary.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

async fn submit_all(
    client: Client,
    lines: Lines,
    defaults: &Defaults,
    concurrency: usize,
    bar: &ProgressBar,
) -> anyhow::Result<Summary> {
    let mut summary = Summary::start();
    let mut stdout = io::stdout().lock();
    let numbered = lines.enumerate().filter(|(_, line)| {
        let blank = line.as_ref().is_ok_and(is_blank);
        async move { !blank }
    });
    let mut answers = numbered
        .map(|(index, line)| {
            let client = client.clone();
            async move {
                let line = line.context("cannot read the tasks")?;
                let task = line.map_err(|why| why.to_string()).and_then(|line| line::parse(&line, defaults));
                let answer = match task {
                    Ok(submission) => submit_one(&client, submission).await,
                    Err(reason) => Answer::Unreadable { reason },
                };
                anyhow::Ok(Numbered { line: index + 1, answer })
            }
        })
        .buffer_unordered(concurrency)
        .boxed_local();
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        summary.count(&answer);
        bar.inc(1);
        let written = serde_json::to_writer(&mut stdout, &answer).map_err(io::Error::from);
        match written.and_then(|()| stdout.write_all(b"\n")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => bail!("nobody reads the outcomes any more"),
            Err(error) => return Err(error).context("cannot write the outcomes"),
        }
    }
    Ok(summary)
}

async fn submit_one(client: &Client, submission: Submission) -> Answer {
    let started = tokio::time::Instant::now();
    match client.submit(&submission).await {
        Ok(outcome) => Answer::Outcome { outcome, took: started.elapsed() },
        Err(error) => Answer::Error { task: submission.id, error },
    }
}

/// The lines, and how many there are where that can be told.
async fn open(file: Option<PathBuf>, input: Option<String>) -> anyhow::Result<(Lines, Option<u64>)> {
    if let Some(input) = input {
        // On its own, so that a mistake is where the user wrote it.
        let input = Json::parse(input).map_err(|error| anyhow::anyhow!("--input is not JSON: {error}"))?;
        let line = format!("{{\"input\":{}}}", input.as_str());
        return Ok((stream::iter([Ok(Ok(line))]).boxed(), Some(1)));
    }
    match file {
        Some(path) if path.as_os_str() != "-" => {
            let opened = open_file(&path).await;
            let (file, total) = opened.map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))?;
            Ok((lines(BufReader::new(file)), total))
        }
        _ => {
            if io::stdin().is_terminal() {
                remark("weir: reading tasks from the terminal, one JSON object per line; end with Ctrl-D");
            }
            Ok((lines(BufReader::new(tokio::io::stdin())), None))
        }
    }
}

/// Opened once: what a pipe has said, it does not say again. Only the lines of a file can be counted beforehand.
async fn open_file(path: &Path) -> io::Result<(File, Option<u64>)> {
    let mut file = File::open(path).await?;
    let kind = file.metadata().await?.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("it is a directory"));
    }
    if !kind.is_file() {
        return Ok((file, None));
    }
    let total = count_lines(&mut file).await?;
    file.rewind().await?;
    Ok((file, Some(total)))
}

/// Counted in pieces, for a file may be larger than memory.
async fn count_lines(file: &mut File) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut count = 0;
    while let Some(line) = read_line(&mut reader).await? {
        count += u64::from(!is_blank(&line));
    }
    Ok(count)
}

fn lines(reader: impl AsyncBufRead + Unpin + Send + 'static) -> Lines {
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match read_line(&mut reader).await {
            Ok(line) => line.map(|line| (Ok(line), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// One line without its end. Of one that is too long, no more than the limit is kept, and the rest is passed over.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Result<String, Unreadable>>> {
    let (mut line, mut bytes) = (Vec::new(), 0_usize);
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() && bytes == 0 {
            return Ok(None);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        line.extend_from_slice(&part[..part.len().min(MAX_LINE_BYTES - line.len())]);
        bytes = bytes.saturating_add(part.len());
        let ended = end.is_some() || available.is_empty();
        let used = end.map_or(available.len(), |end| end + 1);
        reader.consume(used);
        if ended {
            return Ok(Some(match bytes > MAX_LINE_BYTES {
                true => Err(Unreadable::TooLong),
                false => String::from_utf8(line).map_err(|_| Unreadable::NotUtf8),
            }));
        }
    }
}

fn progress_bar(total: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = match total {
        Some(_) => "{bar:40} {pos}/{len} tasks, {per_sec}, {eta} left",
        None => "{spinner} {pos} tasks, {per_sec}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_is_no_text_is_one_of_the_lines() {
        let long = vec![b'x'; MAX_LINE_BYTES];
        let text = [b"one\n\xff\n\n", &long[..], b"\n", &long[..], b"x\n\xfflast\xff"].concat();
        let read: Vec<_> =
            lines(BufReader::new(io::Cursor::new(text))).map(|line| line.expect("readable")).collect().await;
        let (not_utf8, too_long) = (Err(Unreadable::NotUtf8), Err(Unreadable::TooLong));
        assert_eq!(read[3].as_ref().map(String::len), Ok(MAX_LINE_BYTES));
        let others = [&read[..3], &read[4..]].concat();
        assert_eq!(others, [Ok("one".into()), not_utf8.clone(), Ok(String::new()), too_long, not_utf8]);
    }
}
