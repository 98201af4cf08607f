//! `weir check`: is the configuration good, and can what it names be reached from here.
//!
//! It checks as the roles do when they start, by the same code, and goes on after a mistake. A kind of integration that is
//! new comes in by itself: what is wrong with one, its own constructor says, and what it needs, its own `probe`.

mod connect;
mod places;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;

use super::table::{counted, printable};
use super::{block_on, print};
use crate::config::{self, Config, ConfigError};
use crate::integration::{Integrations, MAX_INTEGRATIONS};
use crate::payload::store;
use crate::registry;
use crate::settings::{self, Rejection, Settings};
use crate::task::PoolName;
use crate::telemetry::Telemetry;

/// Flags of `weir check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each line is ok, note or wrong, and a key; the exit code is 1 when anything is wrong. Of an integration whose \
values can all be read, the first mistake in its templates, URLs and secrets is shown.

A program with integrations of its own (weir::cli::serve_worker) has this command, too: PROGRAM check knows them.

--connect logs in to Redis and reads the pool's workers, and the settings where they are there; stores one small \
object, PREFIX/weir-check, for storing is what a worker does and its credentials may allow nothing else; connects to \
each integration's host, TLS included, and sends no request; asks LaunchDarkly for the flags where the settings are \
there; takes the ports that the roles would listen on, and gives them back.

Examples:
  weir check
  weir check --config weir.toml --role worker --connect"
)]
pub(super) struct Args {
    /// Whose configuration to check.
    #[arg(long, value_enum, default_value_t = Role::All)]
    role: Role,
    /// Also tries to reach what the configuration names.
    #[arg(long)]
    connect: bool,
}

/// What this command cannot know.
const ELSEWHERE: &str = "; what a program brings of its own, only that program's check knows (PROGRAM check)";

/// Who would start with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Worker,
    Router,
    Sandbox,
    All,
}

impl Role {
    fn is(self, role: Role) -> bool {
        self == role || self == Role::All
    }

    /// What to ask instead where only one role starts with the configuration: without a role, all are asked about.
    fn alone(self, role: Role) -> String {
        let name = format!("{role:?}").to_lowercase();
        if self == Role::All { format!("; for a {name} alone: weir check --role {name}") } else { String::new() }
    }
}

/// `own` are the integrations that the program brings.
pub(super) fn run(args: &Args, file: Option<&Path>, own: Integrations) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    let (config, problems) = config::examine(file, std::env::vars());
    for problem in &problems {
        match problem {
            ConfigError::Value { key, reason } => report.wrong(key, reason)?,
            ConfigError::File { .. } => report.wrong("configuration", problem)?,
        }
    }
    if let Some(config) = &config {
        let parts = check(args, config, &problems, own, &mut report)?;
        if args.connect {
            block_on(connect::check(args.role, config, &parts, &mut report))?;
        }
    }
    report.end()
}

/// What was found on the way and `--connect` needs.
struct Parts {
    integrations: Integrations,
    settings: Settings,
}

impl Parts {
    /// Those that a router sends to, as far as is known without Redis.
    fn pools<'a>(&'a self, config: &'a Config) -> Vec<&'a PoolName> {
        let pools: Vec<_> = self.settings.pools.iter().map(|(pool, _)| pool).collect();
        if pools.is_empty() { vec![&config.router.pool] } else { pools }
    }
}

fn check(
    args: &Args,
    config: &Config,
    problems: &[ConfigError],
    own: Integrations,
    report: &mut Report,
) -> anyhow::Result<Parts> {
    let mut parts = Parts { integrations: own, settings: config.settings.start() };
    let own: Vec<_> = parts.integrations.names().cloned().collect();
    // A broken one is left out of the configuration: that it is not there is no second mistake.
    let is_broken = |key: &str| problems.iter().any(|problem| problem.is_of(key));
    if args.role.is(Role::Worker) {
        let has_broken = is_broken("integrations");
        if !(config.integrations.is_empty() && has_broken) {
            check_integrations(args.role, config, &mut parts, report)?;
        }
        let upstream = &config.worker.upstream;
        let known: Vec<_> = config.integrations.keys().chain(&own).collect();
        let of_upstream = upstream.unknown(&known).into_iter().map(|it| ("worker.upstream.integrations", it));
        let of_redaction = config.payloads.redaction.unknown(&known);
        let of_redaction = of_redaction.into_iter().map(|it| ("payloads.redaction.paths", it));
        for (section, unknown) in of_upstream.chain(of_redaction) {
            if !is_broken(&format!("integrations.{}", unknown.name)) {
                let hint = if own.is_empty() { ELSEWHERE } else { "" };
                report.wrong(&format!("{section}.{}", unknown.name), format!("{unknown}{hint}"))?;
            }
        }
        note_what_takes_all(config, report)?;
        let names = config.integrations.keys().chain(&own).cloned().collect();
        check_settings(config, &config.worker.settings_context(None, names), &mut parts, report)?;
        match config.worker.advertised(config.worker.listen) {
            Ok(address) => report.fine("worker", format!("serves pool {} at {address}", config.worker.pool))?,
            // The text begins with the key.
            Err(error) => report.wrong_as_said(&error)?,
        }
        if config.registry.url.is_none() {
            report.note("registry.url", "not set: no router will find this worker")?;
        }
        places::check(config, report)?;
        match config.payloads.store {
            store::Kind::None => report.note("payloads.store", "\"none\": payloads are not kept")?,
            kind => report.fine("payloads", format!("kept in {kind:?}").to_lowercase())?,
        }
    }
    if args.role.is(Role::Router) {
        if !args.role.is(Role::Worker) {
            check_settings(config, &config.router.settings_context(), &mut parts, report)?;
        }
        match &config.registry.url {
            Some(_) => {
                let pools: Vec<_> = parts.pools(config).into_iter().map(PoolName::as_str).collect();
                report.fine("router", format!("serves pool {} at {}", pools.join(", "), config.router.listen))?
            }
            None => {
                let needs = "not set: a router needs the Redis that its workers announce themselves in, such as \
                             \"redis://127.0.0.1:6379\"";
                report.wrong("registry.url", format!("{needs}{}", args.role.alone(Role::Worker)))?
            }
        }
    }
    if args.role != Role::Sandbox
        && !report.is_wrong("registry")
        && let Err(registry::RedisError::Config { key, reason }) = config.registry.check_certificates()
    {
        report.wrong(&format!("registry.{key}"), reason)?;
    }
    if args.role.is(Role::Sandbox) {
        report.fine("sandbox", format!("answers at {}", config.sandbox.listen))?;
    }
    Ok(parts)
}

/// One after the other, so that a mistake in one does not hide those in others.
fn check_integrations(role: Role, config: &Config, parts: &mut Parts, report: &mut Report) -> anyhow::Result<()> {
    let count = config.integrations.len() + parts.integrations.len();
    if count == 0 {
        let none = "none is configured: add a section [integrations.NAME] with a kind";
        let none = format!("{none}{ELSEWHERE}{}", role.alone(Role::Router));
        return report.wrong("integrations", none);
    }
    if count > MAX_INTEGRATIONS {
        return report
            .wrong("integrations", format!("{count} are configured: one worker serves at most {MAX_INTEGRATIONS}"));
    }
    for (name, integration) in &config.integrations {
        let alone = BTreeMap::from([(name.clone(), integration.clone())]);
        let built = Integrations::from_config(&alone, &Telemetry::new()?);
        match built.and_then(|built| parts.integrations.clone().merge(built)) {
            Ok(all) => {
                report.fine(&format!("integrations.{name}"), "compiles, and what it refers to is there")?;
                parts.integrations = all;
            }
            Err(error) => report.wrong_as_said(&error)?,
        }
    }
    Ok(())
}

/// A redaction path may be meant so. More likely it was to be longer, and payloads say nothing any more.
fn note_what_takes_all(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    let takes_all =
        |path: &&String| matches!(path.replace("..[*]", "..*").replace("[*]", ".*").as_str(), "$" | "$.*" | "$..*");
    for (integration, paths) in &config.payloads.redaction.paths {
        for path in paths.iter().filter(takes_all) {
            let what = "takes out all there is in bodies, inputs and outputs; for one value use a path such as \
                        \"$.accounts[*].iban\"";
            report.note(&format!("payloads.redaction.paths.{integration}"), format!("{path:?} {what}"))?;
        }
    }
    Ok(())
}

fn check_settings(
    config: &Config,
    context: &settings::Context,
    parts: &mut Parts,
    report: &mut Report,
) -> anyhow::Result<()> {
    if config.settings.source == settings::Source::Redis {
        return report
            .note("settings.source", format!("the key {} of the registry's Redis", config.settings.redis_key));
    }
    if config.settings.source == settings::Source::LaunchDarkly {
        let from = &config.settings.launchdarkly;
        // Without LaunchDarkly in it, weir asks for nothing.
        if report.is_wrong("settings.source") {
            return Ok(());
        }
        let wrong: Vec<_> = [from.sdk_key().err(), from.authorities().err()].into_iter().flatten().collect();
        for error in &wrong {
            report.wrong_as_said(error)?;
        }
        if wrong.is_empty() {
            report.note("settings.source", format!("LaunchDarkly's flags, streamed from {}", from.stream_url))?;
        }
        return Ok(());
    }
    let Some(file) = &config.settings.file else {
        return report.note("settings.file", "not set: the start values stay until the program is started again");
    };
    let shown = file.display();
    match settings::file::examine(file, &parts.settings, context) {
        Ok((settings, rejections)) => {
            report.document("settings.file", shown, &settings, &rejections)?;
            parts.settings = settings;
        }
        Err(_) if !file.exists() => {
            report.note("settings.file", format!("{shown} is not there: the start values hold until it is"))?
        }
        Err(reason) => report.wrong("settings.file", format!("{shown}: {reason}"))?,
    }
    Ok(())
}

/// Prints each finding as it is made.
#[derive(Default)]
struct Report {
    /// The keys of what is wrong.
    wrong: Vec<String>,
}

impl Report {
    /// Says nothing where something of it was wrong: what was not usable has its default here.
    fn fine(&mut self, key: &str, text: impl Display) -> anyhow::Result<()> {
        if self.is_wrong(key) { Ok(()) } else { line("ok", &format!("{key}: {text}")) }
    }

    /// Nothing wrong, and perhaps not what was meant.
    fn note(&mut self, key: &str, text: impl Display) -> anyhow::Result<()> {
        if self.is_wrong(key) { Ok(()) } else { line("note", &format!("{key}: {text}")) }
    }

    fn wrong(&mut self, key: &str, problem: impl Display) -> anyhow::Result<()> {
        self.wrong.push(key.to_owned());
        line("wrong", &format!("{key}: {problem}"))
    }

    /// The settings' document that is there: what of it would not take effect, or that all would.
    fn document(
        &mut self,
        key: &str,
        name: impl Display,
        settings: &Settings,
        rejections: &[Rejection],
    ) -> anyhow::Result<()> {
        for rejection in rejections {
            self.wrong(key, format!("{name}: {rejection}"))?;
        }
        self.fine(key, format!("{name}, version {}", settings.version))
    }

    /// For messages that begin with their key.
    fn wrong_as_said(&mut self, problem: &impl Display) -> anyhow::Result<()> {
        let problem = problem.to_string();
        let (key, reason) = problem.split_once(": ").unwrap_or(("configuration", &problem));
        self.wrong(key, reason)
    }

    /// Whether this key, or one below it, is wrong, or a section that it is in.
    fn is_wrong(&self, key: &str) -> bool {
        let within = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.wrong.iter().any(|wrong| within(wrong, key) || within(key, wrong))
    }

    fn end(self) -> anyhow::Result<ExitCode> {
        match self.wrong.len() as u64 {
            0 => print("all is well"),
            count => {
                print(&counted(count, "problem"))?;
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

/// One line, whatever the text: a parser's message has several.
fn line(verdict: &str, text: &str) -> anyhow::Result<()> {
    let words: Vec<_> = text.split_whitespace().collect();
    print(&format!("{verdict:<5}  {}", printable(&words.join(" ")))).map(drop)
}
