//! The second pass over a payload: no credential that stands in one place behind its name is left in another without.

use std::borrow::Cow;

use super::budget::Stop;
use super::message::searched;
use super::pass::Pass;
use super::reason;
use crate::payload::record::{Body, Redacted, RedactedExchange, RedactedMessage, Text};
use crate::task::transcript::Note;

/// Takes out what the pass looks for; `notes` are those that were redacted.
pub(super) fn again(mut pass: Pass<'_>, notes: &[Note], redacted: &mut Redacted) -> Result<(), Stop> {
    let pass = &mut pass;
    redacted.task.input = pass.json(&redacted.task.input)?;
    for exchange in &mut redacted.exchanges {
        self::exchange(pass, exchange)?;
    }
    for (note, (_, redacted)) in notes.iter().zip(&mut redacted.notes) {
        if note.is_cut {
            redacted.truncate(pass.without_start(redacted)?.len());
        }
        text(pass, redacted)?;
    }
    for attachment in &mut redacted.attachments {
        text(pass, &mut attachment.name)?;
        text(pass, &mut attachment.content_type)?;
        body(pass, &mut attachment.body, attachment.whole_bytes > attachment.recorded_bytes)?;
    }
    match &mut redacted.outcome.result {
        Ok(output) => *output = pass.json(output)?,
        Err(failure) => {
            text(pass, &mut failure.message)?;
            failure.reason = reason(pass, failure.reason.as_ref())?;
        }
    }
    pass.budget.check()
}

fn exchange(pass: &mut Pass<'_>, exchange: &mut RedactedExchange) -> Result<(), Stop> {
    text(pass, &mut exchange.method)?;
    text(pass, &mut exchange.url)?;
    message(pass, &mut exchange.request, false)?;
    if let Some((_, response)) = &mut exchange.response {
        message(pass, response, exchange.error.is_some())?;
    }
    exchange.error.as_mut().map_or(Ok(()), |error| text(pass, error))
}

fn message(pass: &mut Pass<'_>, message: &mut RedactedMessage, is_cut: bool) -> Result<(), Stop> {
    for (name, value) in &mut message.headers {
        text(pass, name)?;
        text(pass, value)?;
    }
    body(pass, &mut message.body, is_cut || message.whole_bytes > message.recorded_bytes)
}

fn body(pass: &mut Pass<'_>, body: &mut Body, is_cut: bool) -> Result<(), Stop> {
    match body {
        Body::Text(whole) => {
            let text = if is_cut { pass.without_start(whole.as_str())? } else { whole.as_str() };
            match pass.text(text)? {
                Cow::Borrowed(same) if same.len() == whole.as_str().len() => {}
                changed => *whole = Text::from(changed.into_owned()),
            }
        }
        Body::Binary(bytes) => *body = searched(pass, bytes)?,
        Body::Withheld(_) => {}
    }
    Ok(())
}

fn text(pass: &mut Pass<'_>, text: &mut String) -> Result<(), Stop> {
    if let Cow::Owned(changed) = pass.text(text)? {
        *text = changed;
    }
    Ok(())
}
