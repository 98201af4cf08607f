//! Takes secrets out of a record, before anything of it is serialized.
//!
//! Of headers and of a URL's query only the values of known names are kept. Everywhere else (paths of URLs, bodies,
//! input, output, messages, notes, attachments) five rules take out values, each a net under the one before: the JSON
//! paths of the integration, what the run itself named as a secret, what follows a credential's name, what has the form
//! of a card number, an IBAN or a token, and all of it again with escapes taken away and in base64. What names and paths
//! led to is then looked for wherever else it stands (`redact/followed.rs`). A body that cannot be looked into is withheld:
//! what is not understood is not kept. Where the rules fail or take too long, only metadata is kept.
//!
//! The same secret has the same placeholder within a payload (`redact/placeholder.rs`).

mod again;
mod budget;
mod decoded;
mod detect;
mod edit;
mod events;
mod followed;
mod message;
mod multipart;
mod named;
mod names;
mod packed;
mod pairs;
mod pass;
mod path;
mod placeholder;
mod prose;
mod rules;
mod secrets;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use metrics::Counter;

use self::again::again;
use self::budget::Stop;
pub use self::detect::Detector;
use self::detect::private_key_goes_on;
use self::pass::Pass;
pub use self::placeholder::{Placeholder, Placeholders, placeholders};
pub use self::rules::Config;
use self::rules::Rules;
use super::ConfigError;
use super::record::{Record, Redacted};
use super::recorded::RecordedExchange;
use crate::task::transcript::Exchange;
use crate::task::{Failure, FailureReason, IntegrationName, Json, Outcome, Task};

/// Redacts records by one configuration. Made once, shared by all encoders.
pub struct Redactor {
    rules: Rules,
    metadata_only: [Counter; Stop::ALL.len()],
}

impl Redactor {
    /// Fails when the configuration cannot be right. Call it where its metrics are to be registered.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        const NAME: &str = "weir_payload_metadata_only_total";
        metrics::describe_counter!(NAME, "Payloads of which only metadata was kept, by why redaction gave up.");
        let metadata_only = Stop::ALL.map(|stop| metrics::counter!(NAME, "reason" => stop.as_str()));
        Ok(Redactor { rules: Rules::new(config)?, metadata_only })
    }

    /// The record without its secrets; its metadata alone where that fails.
    pub fn redact(&self, record: Record) -> Redacted {
        self.redact_with(record, Placeholders::default())
    }

    /// The same for a record in whose texts there are placeholders already: new ones are numbered as `placeholders` says.
    pub fn redact_with(&self, record: Record, placeholders: Placeholders) -> Redacted {
        self.guarded(record, |rules, record| redacted(rules, record, placeholders))
    }

    /// What the payload of a run that goes on would tell of one exchange. `placeholders` are those of the exchanges
    /// before it. None where redaction fails.
    pub fn exchange(
        &self,
        exchange: &Exchange,
        integration: &IntegrationName,
        placeholders: &mut Placeholders,
    ) -> Option<RecordedExchange> {
        let known = std::mem::take(placeholders);
        let redacted = catch_unwind(AssertUnwindSafe(|| {
            let mut pass = Pass::new(&self.rules, integration, &[])?.with(known);
            let exchange = message::exchange(&mut pass, exchange)?;
            Ok::<_, Stop>((exchange, pass.into_placeholders()))
        }));
        let (exchange, known) = redacted.ok()?.ok()?;
        *placeholders = known;
        RecordedExchange::of(&exchange).ok()
    }

    fn guarded(&self, record: Record, work: impl FnOnce(&Rules, &Record) -> Result<Redacted, Stop>) -> Redacted {
        // A panic's own message may quote the payload: it is not looked at.
        let redacted = catch_unwind(AssertUnwindSafe(|| work(&self.rules, &record)));
        match redacted.unwrap_or(Err(Stop::Panicked)) {
            Ok(redacted) => redacted,
            Err(stop) => {
                if let Some(index) = Stop::ALL.iter().position(|it| *it == stop) {
                    self.metadata_only[index].increment(1);
                }
                metadata_only(record, stop)
            }
        }
    }
}

#[cfg(test)]
impl Default for Redactor {
    fn default() -> Self {
        Redactor::new(&Config::default()).expect("the defaults are right")
    }
}

/// The record without its secrets, by the defaults; for the tests of what comes after.
#[cfg(test)]
pub(super) fn redact(record: Record) -> Redacted {
    Redactor::default().redact(record)
}

/// A text for a log: without secrets as far as names and forms tell, or nothing of it.
pub fn for_log(text: &str) -> String {
    const WITHHELD: &str = "(it could not be searched for secrets)";
    let redacted = catch_unwind(|| {
        let rules = Rules::new(&Config::default()).ok()?;
        let integration = "log".parse().ok()?;
        let mut pass = Pass::new(&rules, &integration, &[]).ok()?;
        pass.text(text).ok().map(|text| text.into_owned())
    });
    redacted.ok().flatten().unwrap_or_else(|| WITHHELD.to_owned())
}

fn redacted(rules: &Rules, record: &Record, placeholders: Placeholders) -> Result<Redacted, Stop> {
    let Record { task, transcript, .. } = record;
    if transcript.secrets_left_out > 0 {
        return Err(Stop::TooManySecrets);
    }
    let mut pass = Pass::new(rules, &task.integration, &transcript.secrets)?.with(placeholders.clone());
    let mut redacted = once(&mut pass, record)?;
    if pass.anew(&transcript.secrets, &placeholders)? {
        redacted = once(&mut pass, record)?;
    }
    if let Some(pass) = pass.second()? {
        again(pass, &transcript.notes, &mut redacted)?;
    }
    Ok(redacted)
}

/// One pass over all of it.
fn once(pass: &mut Pass<'_>, record: &Record) -> Result<Redacted, Stop> {
    let Record { task, outcome, transcript, pool } = record;
    // In the order in which it happened, so that the numbers of the placeholders follow the story.
    let input = pass.json(&task.input)?;
    let mut exchanges = Vec::with_capacity(transcript.exchanges.len());
    for exchange in &transcript.exchanges {
        exchanges.push(message::exchange(pass, exchange)?);
    }
    let mut notes = Vec::with_capacity(transcript.notes.len());
    let mut in_key = false;
    for note in &transcript.notes {
        let text = if note.is_cut { pass.without_cut(&note.text)? } else { &note.text };
        let was_in_key = in_key;
        in_key = private_key_goes_on(text, in_key);
        // Of a private key that was said line by line, no line has a form.
        let text = if was_in_key && in_key { pass.placeholder(text) } else { pass.text(text)?.into_owned() };
        notes.push((note.at, text));
    }
    let mut attachments = Vec::with_capacity(transcript.attachments.len());
    for attachment in &transcript.attachments {
        attachments.push(message::attachment(pass, attachment)?);
    }
    let result = match &outcome.result {
        Ok(output) => Ok(pass.json(output)?),
        Err(failure) => Err(Failure {
            message: pass.text(&failure.message)?.into_owned(),
            reason: reason(pass, failure.reason.as_ref())?,
            ..failure.clone()
        }),
    };
    pass.budget.check()?;
    Ok(Redacted {
        task: Task { input, ..task.clone() },
        outcome: Outcome { result, ..outcome.clone() },
        pool: pool.clone(),
        exchanges,
        exchanges_left_out: transcript.exchanges_left_out,
        notes,
        notes_left_out: transcript.notes_left_out,
        attachments,
        attachments_left_out: transcript.attachments_left_out,
        withheld: None,
    })
}

/// A name has no room for a placeholder.
fn reason(pass: &mut Pass<'_>, reason: Option<&FailureReason>) -> Result<Option<FailureReason>, Stop> {
    let Some(reason) = reason else { return Ok(None) };
    let is_clean = matches!(pass.text(reason.as_str())?, Cow::Borrowed(_));
    Ok(if is_clean { Some(reason.clone()) } else { "redacted".parse().ok() })
}

fn metadata_only(record: Record, stop: Stop) -> Redacted {
    const WITHHELD: &str = "(withheld)";
    let Record { task, outcome, transcript, pool } = record;
    let count = |length: usize, left_out: u32| left_out.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
    let withheld = |failure: Failure| Failure { message: WITHHELD.to_owned(), ..failure };
    let result = outcome.result.map(|_| Json::null()).map_err(withheld);
    Redacted {
        task: Task { input: Json::null(), ..task },
        outcome: Outcome { result, ..outcome },
        pool,
        exchanges: Vec::new(),
        exchanges_left_out: count(transcript.exchanges.len(), transcript.exchanges_left_out),
        notes: Vec::new(),
        notes_left_out: count(transcript.notes.len(), transcript.notes_left_out),
        attachments: Vec::new(),
        attachments_left_out: count(transcript.attachments.len(), transcript.attachments_left_out),
        withheld: Some(stop.explanation()),
    }
}

#[cfg(test)]
mod tests;
