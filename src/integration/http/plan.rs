//! A configuration, checked and compiled: what is wrong shows at boot, with its key.

use std::time::Duration;

use super::base::Base;
use super::budget::Limits;
use super::config::{Config, Step};
use super::errors::Rules;
use super::expression::{Condition, Names};
use super::node::Node;
use super::pages::Pages;
use super::request::{self, RequestPlan};
use super::retry;
use super::template::Template;
use crate::integration::Invalid;

/// Steps of one integration.
const MAX_STEPS: usize = 32;

/// Iterations of one loop that run at a time; the sockets per host are the other limit.
const MAX_PARALLEL: usize = 64;

/// Items of one loop.
const MAX_ITEMS: usize = 100_000;
const DEFAULT_ITEMS: usize = 1_000;

/// A step that takes longer is a mistake: no task lives that long.
const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);

pub(super) struct Plan {
    pub(super) base: Base,
    pub(super) steps: Vec<CompiledStep>,
    pub(super) result: Option<Node>,
    pub(super) errors: Rules,
    pub(super) limits: Limits,
}

pub(super) struct CompiledStep {
    pub(super) name: String,
    pub(super) when: Option<Condition>,
    pub(super) for_each: Option<ForEach>,
    pub(super) request: RequestPlan,
    pub(super) pages: Option<Pages>,
    pub(super) value: Option<Node>,
    pub(super) retries: retry::Config,
    /// Sending it twice does no harm.
    pub(super) may_repeat: bool,
    pub(super) errors: Rules,
    pub(super) timeout: Option<Duration>,
}

/// A loop over the items of a list.
pub(super) struct ForEach {
    pub(super) list: Template,
    /// How many iterations run at a time.
    pub(super) parallel: usize,
    pub(super) max_items: usize,
}

impl Plan {
    /// Checks and compiles the configuration of `[section]`.
    pub(super) fn compile(config: &Config, section: &str) -> Result<Self, Invalid> {
        let base = Base::parse(&config.base_url)?;
        request::shared_headers(config)?;
        config.retries.check().map_err(|invalid| invalid.within("retries"))?;
        let limits = Limits::new(config, section)?;
        if !(1..=MAX_STEPS).contains(&config.steps.len()) {
            let problem = format!("{} steps are configured: use 1 to {MAX_STEPS}", config.steps.len());
            return Err(Invalid::new("steps", problem));
        }
        let (mut names, mut steps) = (Vec::new(), Vec::new());
        for (position, step) in config.steps.iter().enumerate() {
            let compiled = CompiledStep::compile(config, step, &names);
            steps.push(compiled.map_err(|invalid| invalid.within(&format!("steps[{position}]")))?);
            names.push(step.name.clone());
        }
        let names = Names { steps: &names, ..Names::default() };
        let result = config.result.as_ref().map(|result| Node::compile(result, names)).transpose();
        let result = result.map_err(|problem| Invalid::new("result", problem))?;
        let errors = Rules::compile(&config.errors, Names::default())?;
        Ok(Plan { base, steps, result, errors, limits })
    }
}

impl CompiledStep {
    fn compile(config: &Config, step: &Step, earlier: &[String]) -> Result<Self, Invalid> {
        check_name(&step.name, earlier)?;
        let before = Names { steps: earlier, ..Names::default() };
        let when = step.when.as_ref().map(|when| Condition::compile(when, before)).transpose();
        let when = when.map_err(|problem| Invalid::new("when", problem))?;
        let for_each = ForEach::compile(step, before)?;
        let names = Names { item: for_each.is_some(), ..before };
        let request = RequestPlan::compile(config, step, names)?;
        let pages = step.pagination.as_ref().map(|pagination| Pages::compile(pagination, names)).transpose();
        let pages = pages.map_err(|invalid| invalid.within("pagination"))?;
        if let Some(parameter) = pages.as_ref().and_then(Pages::parameter).filter(|name| request.sets(name)) {
            return Err(Invalid::new(format!("query.{parameter}"), "pagination sets it: leave it out"));
        }
        let value = step.value.as_ref().map(|value| Node::compile(value, Names { body: true, ..names })).transpose();
        let value = value.map_err(|problem| Invalid::new("value", problem))?;
        let retries = step.retries.as_ref().unwrap_or(&config.retries);
        retries.check().map_err(|invalid| invalid.within("retries"))?;
        Ok(CompiledStep {
            name: step.name.clone(),
            when,
            for_each,
            pages,
            value,
            retries: retries.clone(),
            may_repeat: step.idempotent || retry::is_idempotent(request.method),
            errors: Rules::compile(&step.errors, names)?,
            timeout: check_timeout(step.timeout)?,
            request,
        })
    }
}

impl ForEach {
    fn compile(step: &Step, names: Names<'_>) -> Result<Option<Self>, Invalid> {
        let (parallel, max_items) = (step.parallel.unwrap_or(1), step.max_items.unwrap_or(DEFAULT_ITEMS));
        let limits =
            [("parallel", step.parallel, parallel, MAX_PARALLEL), ("max_items", step.max_items, max_items, MAX_ITEMS)];
        for (key, configured, value, max) in limits {
            if configured.is_some() && step.for_each.is_none() {
                return Err(Invalid::new(key, "there is no for_each that it could limit: leave it out"));
            }
            if !(1..=max).contains(&value) {
                return Err(Invalid::new(key, format!("{value} is out of range: use 1 to {max}")));
            }
        }
        let Some(list) = &step.for_each else { return Ok(None) };
        let list = Template::compile(list, names).map_err(|problem| Invalid::new("for_each", problem))?;
        Ok(Some(ForEach { list, parallel, max_items }))
    }
}

fn check_name(name: &str, earlier: &[String]) -> Result<(), Invalid> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase());
    if !plain || !starts_well || name.len() > 64 {
        let problem = format!("{name:?} is not valid: use 1 to 64 of a-z 0-9 _, the first a letter");
        return Err(Invalid::new("name", problem));
    }
    if earlier.iter().any(|known| known == name) {
        return Err(Invalid::new("name", format!("{name:?} is there twice: each step needs its own")));
    }
    Ok(())
}

fn check_timeout(timeout: Option<Duration>) -> Result<Option<Duration>, Invalid> {
    match timeout {
        Some(value) if value.is_zero() || value > MAX_TIMEOUT => {
            let value = humantime::format_duration(value);
            Err(Invalid::new("timeout", format!("{value} is out of range: use more than 0s and at most 1h")))
        }
        valid => Ok(valid),
    }
}
