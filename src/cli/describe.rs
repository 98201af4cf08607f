//! `weir describe`: what one worker or router is and does now.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use super::table::{Table, counted, duration, printable};
use super::{block_on, print};
use crate::client::operations::Operations;
use crate::overload::bytes_text;
use crate::wire::proto::{Description, description};

/// Flags of `weir describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The keys of --json are the fields of Description in proto/weir/v1/operations.proto.

Examples:
  weir describe 127.0.0.1:7401
  weir describe 127.0.0.1:7400 --json | jq .role.router.view")]
pub(super) struct Args {
    /// The gRPC address of a worker or router: HOST:PORT or http://HOST:PORT.
    address: String,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    /// The most running tasks to list, oldest first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    tasks: u32,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let description = block_on(async {
        let server = Operations::new(&args.address)?;
        Ok(server.describe(args.tasks).await?)
    })?;
    if args.json {
        print(&serde_json::to_string(&description).context("cannot write the description as JSON")?)
    } else {
        print(text(&description).trim_end())
    }
}

/// For people: a section per organ.
fn text(description: &Description) -> String {
    let mut text = String::new();
    match &description.role {
        Some(description::Role::Worker(worker)) => worker_text(&mut text, description, worker),
        Some(description::Role::Router(router)) => router_text(&mut text, description, router),
        None => head(&mut text, description, "a role that this version of weir does not know", &[]),
    }
    text
}

/// The first lines, the same for both roles but for `more`.
fn head(text: &mut String, description: &Description, who: &str, more: &[(&str, &str)]) {
    let Description { version, pool, listen, admin, started_at, uptime_seconds, .. } = description;
    let draining = if description.draining { ", DRAINING" } else { "" };
    line(text, &format!("{who} in pool {pool}{draining}"));
    pair(text, "version", version);
    pair(text, "listens", &format!("{listen}, admin {admin}"));
    more.iter().for_each(|(key, value)| pair(text, key, value));
    pair(text, "started", &format!("{started_at}, {} ago", duration(*uptime_seconds)));
}

fn worker_text(text: &mut String, description: &Description, worker: &description::Worker) {
    let more = [("advertised", worker.address.as_str()), ("incarnation", &worker.incarnation)];
    head(text, description, &format!("worker {}", worker.id), &more);
    let gate = worker.gate.clone().unwrap_or_default();
    gate_text(text, &gate);
    pair(text, "limited by", &worker.limited_by);
    if let Some(overload) = &worker.overload {
        overload_text(text, overload);
    }
    if let Some(age) = worker.oldest_overdue_seconds {
        let tasks = counted(worker.overdue.into(), "task");
        pair(text, "overdue", &format!("{tasks} that should have stopped, the first {} ago", duration(age)));
    }
    match &worker.payloads {
        Some(payloads) => {
            pair(text, "payloads", &ledger(payloads));
            payloads.degraded.iter().for_each(|what| pair(text, "DEGRADED", what));
        }
        None => pair(text, "payloads", "not kept"),
    }

    settings_text(text, &worker.settings.clone().unwrap_or_default());

    section(text, "integrations");
    let head = ["NAME", "IN FLIGHT#", "SLOTS#", "OF#", "LIMITED BY", "NEEDS#", "BREAKER", "ADAPTIVE LIMIT"];
    let mut table = Table::new(&head);
    for integration in &worker.integrations {
        let description::Integration { name, in_flight, slots_held, slots_limit, .. } = integration;
        let numbers = [in_flight, slots_held, slots_limit].map(ToString::to_string);
        let learned = [
            limited_by(integration),
            integration.needs_at_least_seconds.map_or_else(|| "-".into(), duration),
            breaker(integration),
            integration.adaptive_limit.as_ref().map_or_else(|| "-".into(), limit),
        ];
        table.row([vec![name.clone()], numbers.into(), learned.into()].concat());
    }
    indented(text, &table);

    let shown = match (worker.running.len() as u64, u64::from(gate.in_flight)) {
        (0, _) => return section(text, "nothing runs"),
        (shown, all) if shown < all => format!("running: the {shown} oldest of {}", counted(all, "task")),
        (shown, _) => format!("running: {}, oldest first", counted(shown, "task")),
    };
    section(text, &shown);
    let mut table = Table::new(&["TASK", "INTEGRATION", "TENANT", "PRIORITY", "ATTEMPT#", "AGE#", "LEFT#", "OVERDUE#"]);
    for run in &worker.running {
        table.row([
            run.task_id.clone(),
            run.integration.clone(),
            run.tenant.clone(),
            run.priority.clone(),
            run.attempt.to_string(),
            duration(run.age_seconds),
            duration(run.remaining_seconds),
            run.overdue_seconds.map_or_else(|| "-".into(), duration),
        ]);
    }
    indented(text, &table);
}

/// What the worker watches in itself.
fn overload_text(text: &mut String, overload: &description::Overload) {
    if let (Some(signal), why) = (&overload.shedding, overload.why.as_deref().unwrap_or_default()) {
        pair(text, "SHEDDING LOAD", &format!("{signal}: {why}"));
    }
    let blocked = counted(overload.blocked_threads.into(), "async thread");
    let by = overload.blocked_by.as_ref().map_or_else(String::new, |name| format!(" (for longest by {name})"));
    pair(text, "runtime", &format!("lags {}, {blocked} blocked{by}", duration(overload.lag_seconds)));
    if let (Some(used), Some(limit)) = (overload.memory_bytes, overload.memory_limit_bytes) {
        let whose = overload.memory_limit_of.as_deref().unwrap_or_default();
        pair(text, "memory", &format!("{} of {} ({whose})", bytes_text(used), bytes_text(limit)));
    }
    if let Some(ratio) = overload.throttled_ratio {
        pair(text, "CPU quota", &format!("used up in {:.0}% of the last periods", ratio * 100.0));
    }
    if let (Some(used), Some(limit)) = (overload.descriptors, overload.descriptors_limit) {
        pair(text, "descriptors", &format!("{used} of {limit} open"));
    }
}

/// What the gate holds, and who is kept out although it is open.
fn gate_text(text: &mut String, gate: &description::Gate) {
    let description::Gate { state, in_flight, slots_target: target, slots_reserved, .. } = gate;
    let (interactive, batch) = (gate.slots_held_by_interactive, gate.slots_held_by_batch);
    let held = interactive + batch;
    let slots = match (target, held) {
        (0, 0) => "takes nothing (max_parallelism is 0)".to_owned(),
        (0, _) => format!("takes nothing (max_parallelism is 0), {held} slots held until their tasks have ended"),
        _ => format!("{held} of {target} slots held"),
    };
    pair(text, "gate", &format!("{state}, {slots}, {in_flight} in flight"));
    let reserved = match slots_reserved {
        0 => String::new(),
        reserve => format!(", {reserve} of {target} slots are reserved for interactive"),
    };
    pair(text, "held by", &format!("interactive {interactive}, batch {batch}{reserved}"));
    if !gate.full_tenants.is_empty() {
        let tenants: Vec<_> =
            gate.full_tenants.iter().map(|of| format!("{} {} of {}", of.name, of.slots_held, of.slots_limit)).collect();
        pair(text, "tenants at cap", &tenants.join(", "));
    }
}

/// Which limit of an integration's own is the smallest, and whether it is reached.
fn limited_by(integration: &description::Integration) -> String {
    let description::Integration { slots_limit: most, slots_cap, slots_adaptive, slots_per_task: weight, .. } =
        integration;
    let by = match (slots_cap, slots_adaptive) {
        (_, Some(limit)) if slots_cap.is_none_or(|cap| *limit < cap) && limit == most => "adaptive limit",
        (Some(cap), _) if cap == most => "cap",
        _ => "N",
    };
    let reached = if by != "N" && most.saturating_sub(integration.slots_held) < *weight { ", reached" } else { "" };
    let weight = if *weight > 1 { format!(", a task holds {weight}") } else { String::new() };
    format!("{by}{reached}{weight}")
}

fn breaker(integration: &description::Integration) -> String {
    let description::Integration { breaker, breaker_saw, breaker_open_for_seconds, .. } = integration;
    match (breaker_open_for_seconds, breaker_saw.is_empty()) {
        (Some(remaining), _) => format!("{breaker} for {}: {breaker_saw}", duration(*remaining)),
        (None, false) => format!("{breaker}: {breaker_saw}"),
        (None, true) => breaker.clone(),
    }
}

fn limit(limit: &description::AdaptiveLimit) -> String {
    let baseline = limit.baseline_seconds.map(|baseline| format!(", baseline {}", duration(baseline)));
    let shadow = if limit.mode == "on" { String::new() } else { format!(" ({} only)", limit.mode) };
    format!("{}{shadow}{}", limit.tasks, baseline.unwrap_or_default())
}

fn ledger(payloads: &description::Payloads) -> String {
    let description::Payloads { offered, recovered, stored, spooled, pending, pending_bytes, dropped, .. } = payloads;
    let mut text = format!("{offered} offered, {stored} stored, {} dropped", dropped.values().sum::<u64>());
    if !dropped.is_empty() {
        let reasons: Vec<_> = dropped.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        // Writing into a string cannot fail.
        let _ = write!(text, " ({})", reasons.join(", "));
    }
    let _ = write!(text, ", {pending} pending ({pending_bytes} bytes)");
    if recovered + spooled > 0 {
        let _ = write!(text, ", {recovered} recovered, {spooled} spooled");
    }
    text
}

fn router_text(text: &mut String, description: &Description, router: &description::Router) {
    head(text, description, "router", &[]);
    pair(text, "in flight", &format!("{}, {}", counted(description.in_flight.into(), "task"), channels(router)));

    pools_text(text, router);

    let view = router.view.clone().unwrap_or_default();
    let heard = match view.age_seconds {
        Some(age) => format!("heard {} ago", duration(age)),
        None => "never heard".into(),
    };
    let stale = if view.stale { ", STALE: the registry cannot be reached" } else { "" };
    section(text, &format!("view, {heard}{stale}"));
    let description::View { workers, full, draining, suspected, slots, slots_held, ejected, with_room, .. } = view;
    let states = format!("{workers}: {full} full, {draining} draining, {suspected} suspected, {ejected} ejected");
    pair(text, "workers", &format!("{states}; {with_room} with room"));
    for out in &view.ejected_workers {
        let (again, times) = (duration(out.for_seconds), counted(out.times.into(), "time"));
        pair(text, "ejected", &format!("{}, for {again} more, {times}: {}", out.worker, out.why));
    }
    pair(text, "slots", &format!("{slots_held} of {slots} held, about"));

    section(text, "queue");
    let mut table = Table::new(&["PRIORITY", "WAITING#", "CAPACITY#", "BYTES#", "OLDEST#", "PER SECOND#"]);
    for queue in &router.queues {
        let description::Queue { priority, waiting, capacity, bytes, oldest_seconds, per_second } = queue;
        let oldest = oldest_seconds.map_or_else(|| "-".into(), duration);
        let rate = per_second.map_or_else(|| "-".into(), |rate| format!("{rate:.1}"));
        let numbers = [waiting.to_string(), capacity.to_string(), bytes.to_string(), oldest, rate];
        table.row([vec![priority.clone()], numbers.into()].concat());
    }
    indented(text, &table);
    if router.tenants.is_empty() {
        return;
    }
    section(text, "tenants, those with the most waiting first");
    let mut table = Table::new(&["TENANT", "POOL", "PRIORITY", "WAITING#", "RUNNING#", "AT ITS CAP"]);
    for tenant in &router.tenants {
        let at_cap = if tenant.at_cap { "yes" } else { "-" };
        let numbers = [tenant.waiting, tenant.running].map(|number| number.to_string());
        let who = vec![tenant.name.clone(), tenant.pool.clone(), tenant.priority.clone()];
        table.row([who, numbers.into(), vec![at_cap.into()]].concat());
    }
    indented(text, &table);
}

/// The values that hold, and what of the last document does not.
fn settings_text(text: &mut String, settings: &description::Settings) {
    let description::Settings { version, values, rejected, source, unserved } = settings;
    section(text, &format!("settings, version {version}"));
    match source {
        Some(source) => source_text(text, source),
        None => pair(text, "source", "none: the start values stay"),
    }
    values.iter().for_each(|(key, value)| pair(text, key, value));
    unserved.iter().for_each(|name| pair(text, "NOT SERVED HERE", name));
    let Some(description::Rejected { version: of, values, more }) = rejected else { return };
    let of = if of == version { String::new() } else { format!(" (of version {of}, which did not take effect)") };
    values.iter().for_each(|value| pair(text, "REJECTED", &format!("{}: {}{of}", value.key, value.reason)));
    if *more > 0 {
        pair(text, "REJECTED", &format!("{more} more, which the log has{of}"));
    }
}

/// Where the document is; what is away is said aloud, for no change arrives from it.
fn source_text(text: &mut String, source: &description::SettingsSource) {
    let description::SettingsSource { name, reachable, since_seconds, last_read_seconds, why } = source;
    let read = last_read_seconds.map(|age| format!("read {} ago", duration(age)));
    if *reachable {
        return pair(text, "source", &format!("{name}, {}", read.unwrap_or_default()));
    }
    let (since, why) = (duration(*since_seconds), why.as_deref().unwrap_or("nobody knows why"));
    let read = read.map_or_else(|| "not read since the start".into(), |read| format!("last {read}"));
    pair(text, "SOURCE AWAY", &format!("{name}, for {since}, {read}: {why}; what held before holds on"));
}

/// What goes where, and who says so.
fn pools_text(text: &mut String, router: &description::Router) {
    settings_text(text, &router.settings.clone().unwrap_or_default());

    section(text, "pools");
    let mut table =
        Table::new(&["POOL", "SHARE#", "WORKERS#", "SLOTS HELD#", "OF#", "WAITING#", "OVERFLOWS INTO", "STATE"]);
    for pool in &router.pools {
        let view = pool.view.clone().unwrap_or_default();
        let waiting: u32 = pool.queues.iter().map(|queue| queue.waiting).sum();
        let stale = if view.stale { ", STALE" } else { "" };
        table.row([
            pool.name.clone(),
            format!("{:.1}%", pool.share * 100.0),
            view.workers.to_string(),
            view.slots_held.to_string(),
            view.slots.to_string(),
            waiting.to_string(),
            pool.overflows_into.clone().unwrap_or_else(|| "-".into()),
            format!("{}{stale}", pool.state),
        ]);
    }
    indented(text, &table);
}

fn channels(router: &description::Router) -> String {
    format!("{} to workers", counted(router.channels.into(), "channel"))
}

fn line(text: &mut String, line: &str) {
    text.push_str(&printable(line));
    text.push('\n');
}

fn section(text: &mut String, title: &str) {
    text.push('\n');
    line(text, title);
}

fn pair(text: &mut String, key: &str, value: &str) {
    line(text, &format!("  {key:<16}  {value}"));
}

fn indented(text: &mut String, table: &Table) {
    table.lines().iter().for_each(|row| line(text, &format!("  {row}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_whose_n_is_0_takes_nothing() {
        let described = |slots_target, held, in_flight| {
            let (mut text, state) = (String::new(), "full".to_owned());
            let gate =
                description::Gate { state, in_flight, slots_target, slots_held_by_batch: held, ..Default::default() };
            gate_text(&mut text, &gate);
            text.lines().next().map(|line| line.trim_start().to_owned()).unwrap_or_default()
        };
        let nothing = "full, takes nothing (max_parallelism is 0)";
        assert!(described(0, 0, 0).ends_with(&format!("{nothing}, 0 in flight")));
        let busy = format!("{nothing}, 8 slots held until their tasks have ended, 4 in flight");
        assert!(described(0, 8, 4).ends_with(&busy), "{}", described(0, 8, 4));
        assert!(described(8, 8, 4).ends_with("full, 8 of 8 slots held, 4 in flight"));
    }

    #[test]
    fn a_source_that_is_away_is_said_aloud_with_why_and_for_how_long() {
        let described = |reachable, last_read_seconds, why: Option<&str>| {
            let (mut text, why) = (String::new(), why.map(str::to_owned));
            let name = "redis 127.0.0.1:6379 weir:{settings}".into();
            let source = description::SettingsSource { name, reachable, since_seconds: 30.0, last_read_seconds, why };
            source_text(&mut text, &source);
            text
        };
        let there = "  source            redis 127.0.0.1:6379 weir:{settings}, read 2.0s ago\n";
        assert_eq!(described(true, Some(2.0), None), there);
        let away = "  SOURCE AWAY       redis 127.0.0.1:6379 weir:{settings}, for 30s, last read 34s ago: refused; what \
                    held before holds on\n";
        assert_eq!(described(false, Some(34.0), Some("refused")), away);
        let never = described(false, None, Some("refused"));
        assert!(never.contains(", for 30s, not read since the start: refused; "), "{never}");
    }
}
