//! Redacts an event stream (HTML Living Standard, 9.2.6): the `data` lines of an event are one value, whatever lines stand
//! between them.

use std::borrow::Cow;
use std::slice::ChunkBy;

use super::budget::Stop;
use super::edit::starts_document;
use super::pass::Pass;

/// What stands where a path cannot be found, because the value is cut or no JSON.
const UNREADABLE: &str = " [redacted-0]";

/// A line and its end.
#[derive(Clone, Copy)]
struct Line<'t> {
    text: &'t str,
    end: &'t str,
}

impl<'t> Line<'t> {
    /// Name and colon of a `data` line, and what comes behind.
    fn data(&self) -> Option<(&'t str, &'t str)> {
        const NAME: &str = "data";
        match self.text.strip_prefix(NAME)? {
            "" => Some((NAME, "")),
            behind => behind.starts_with(':').then(|| self.text.split_at(NAME.len() + 1)),
        }
    }
}

/// The body of an event stream.
pub(super) fn events<'t>(pass: &mut Pass<'_>, text: &'t str) -> Result<Cow<'t, str>, Stop> {
    let mut redacted = String::with_capacity(text.len());
    let (mark, rest) = text.split_at(if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 });
    redacted.push_str(mark);
    for event in lines(rest).split_inclusive(|line| line.text.is_empty()) {
        self::event(pass, event, &mut redacted)?;
    }
    Ok(if redacted == text { Cow::Borrowed(text) } else { Cow::Owned(redacted) })
}

/// Lines end in CR LF, LF or CR.
fn lines(text: &str) -> Vec<Line<'_>> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let length = rest.find(['\r', '\n']).unwrap_or(rest.len());
        let (text, behind) = rest.split_at(length);
        let end = ["\r\n", "\n", "\r", ""].into_iter().find(|end| behind.starts_with(end)).unwrap_or_default();
        lines.push(Line { text, end });
        rest = &behind[end.len()..];
    }
    lines
}

/// The lines of an event that are of its value, and those between them, by turns.
fn runs<'l, 't>(event: &'l [Line<'t>]) -> ChunkBy<'l, Line<'t>, impl FnMut(&Line<'t>, &Line<'t>) -> bool> {
    event.chunk_by(|one, next| one.data().is_some() == next.data().is_some())
}

fn event(pass: &mut Pass<'_>, event: &[Line<'_>], redacted: &mut String) -> Result<(), Stop> {
    let values: Vec<&str> = event.iter().filter_map(|line| line.data().map(|(_, value)| value)).collect();
    let joined = values.join("\n");
    let value = match starts_document(joined.as_bytes()) {
        true => pass.document(&joined)?.unwrap_or(Cow::Borrowed(UNREADABLE)),
        false => pass.text(&joined)?,
    };
    // A secret of several lines leaves fewer of them.
    let left: Vec<&str> = value.split('\n').collect();
    let mut parts = left.iter().take(if left.len() == values.len() { usize::MAX } else { 0 });
    let mut whole = Some(value.replace('\n', "\ndata:"));
    for run in runs(event) {
        if run[0].data().is_none() {
            let others: String = run.iter().flat_map(|line| [line.text, line.end]).collect();
            redacted.push_str(&pass.text(&others)?);
            continue;
        }
        for line in run {
            let (name, _) = line.data().unwrap_or_default();
            match (left.len() == values.len(), parts.next(), whole.take()) {
                (true, Some(part), _) => redacted.extend([name, part, line.end]),
                (false, _, Some(whole)) => redacted.extend(["data:", &whole, line.end]),
                _ => {}
            }
        }
    }
    Ok(())
}
