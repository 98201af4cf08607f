//! Redacts what was said: an exchange's URL, headers and bodies, and attachments.
//!
//! A body that cannot be looked into (compressed, of an unknown charset) is withheld: what is not understood is not
//! kept. The exception are media types that the configuration names, by default images: nothing in them is looked for,
//! except that an archive or a document labelled as one of many images is none.

use std::borrow::Cow;

use bytes::Bytes;

use super::budget::Stop;
use super::events::events;
use super::multipart::multipart;
use super::names::is_sensitive;
use super::pass::{Pass, is_json};
use crate::payload::record::{Body, RedactedAttachment, RedactedExchange, RedactedMessage, Text, header};
use crate::task::transcript::{Attachment, Exchange, Message};

/// How formats begin that hide what they hold: PDF, zip (and office documents), gzip, bzip2, xz, zstd, 7z, RAR.
const HIDING: &[&[u8]] =
    &[b"%PDF", b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!"];

const HOLDS_SECRET: &str = "it is binary and holds something like a secret";

pub(super) fn exchange(pass: &mut Pass<'_>, exchange: &Exchange) -> Result<RedactedExchange, Stop> {
    pass.budget.check()?;
    // Without a whole answer, what there is of one was cut.
    let is_cut = exchange.error.is_some();
    let response = match &exchange.response {
        Some(response) => Some((response.status, message(pass, &response.message, is_cut)?)),
        None => None,
    };
    let error = exchange.error.as_deref().map(|error| pass.text(error)).transpose()?;
    Ok(RedactedExchange {
        started: exchange.started,
        method: pass.text(&exchange.method)?.into_owned(),
        url: pass.url(&exchange.url)?,
        request: message(pass, &exchange.request, false)?,
        response,
        error: error.map(Cow::into_owned),
        fault: exchange.fault,
        phases: exchange.phases,
    })
}

fn message(pass: &mut Pass<'_>, message: &Message, is_cut: bool) -> Result<RedactedMessage, Stop> {
    let mut headers = Vec::with_capacity(message.headers.len());
    for (name, value) in &message.headers {
        let value = match name.as_str() {
            _ if value.is_empty() => String::new(),
            _ if is_sensitive(name) => pass.credential(name, value),
            _ if !pass.rules.keeps_header(name) => pass.placeholder(value),
            _ if ["location", "content-location", "referer"].iter().any(|url| name.eq_ignore_ascii_case(url)) => {
                pass.url(value)?
            }
            _ if name.eq_ignore_ascii_case("link") => links(pass, value)?,
            _ => pass.text(value)?.into_owned(),
        };
        headers.push((pass.text(name)?.into_owned(), value));
    }
    let coding = header(&message.headers, "content-encoding");
    let body = if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) && !message.body.is_empty() {
        Body::Withheld("it is compressed, so it could not be searched for secrets")
    } else {
        let media_type = header(&message.headers, "content-type").unwrap_or_default();
        body(pass, media_type, &message.body, is_cut || message.body_bytes > message.body.len() as u64)?
    };
    Ok(RedactedMessage {
        headers,
        body,
        recorded_bytes: message.body.len() as u64,
        whole_bytes: message.body_bytes.max(message.body.len() as u64),
    })
}

/// The URLs of a `Link` header (RFC 8288), each as one, and the rest as a text.
fn links(pass: &mut Pass<'_>, header: &str) -> Result<String, Stop> {
    let mut redacted = String::with_capacity(header.len());
    let mut rest = header;
    while let Some((before, (url, after))) = rest.split_once('<').and_then(|(a, b)| Some((a, b.split_once('>')?))) {
        redacted.push_str(&pass.text(before)?);
        redacted.extend(["<", &*pass.url(url)?, ">"]);
        rest = after;
    }
    redacted.push_str(&pass.text(rest)?);
    Ok(redacted)
}

pub(super) fn attachment(pass: &mut Pass<'_>, attachment: &Attachment) -> Result<RedactedAttachment, Stop> {
    let is_cut = attachment.body_bytes > attachment.body.len() as u64;
    Ok(RedactedAttachment {
        at: attachment.at,
        name: pass.text(&attachment.name)?.into_owned(),
        content_type: pass.text(&attachment.content_type)?.into_owned(),
        body: body(pass, &attachment.content_type, &attachment.body, is_cut)?,
        recorded_bytes: attachment.body.len() as u64,
        whole_bytes: attachment.body_bytes,
    })
}

pub(super) fn body(pass: &mut Pass<'_>, media_type: &str, body: &Bytes, is_cut: bool) -> Result<Body, Stop> {
    let media_type = media_type.to_ascii_lowercase();
    if body.is_empty() {
        return Ok(Body::Text(Text::default()));
    }
    if media_type.starts_with("multipart/") {
        return multipart(pass, &media_type, body, is_cut);
    }
    let declared_text = ["text", "json", "xml", "form", "javascript"].iter().any(|kind| media_type.contains(kind));
    if declared_text && body.contains(&0) {
        return Ok(Body::Withheld("its charset is not UTF-8, so it could not be searched for secrets"));
    }
    if declared_text || is_text(body) { text(pass, &media_type, body, is_cut) } else { binary(pass, &media_type, body) }
}

fn text(pass: &mut Pass<'_>, media_type: &str, body: &Bytes, is_cut: bool) -> Result<Body, Stop> {
    let whole = String::from_utf8_lossy(body);
    let text = if is_cut { pass.without_cut(&whole)? } else { &whole };
    let redacted = if media_type.contains("x-www-form-urlencoded") {
        pass.form(text)?
    } else if media_type.starts_with("text/event-stream") {
        events(pass, text)?
    } else if is_json(media_type, text) {
        match pass.document(text)? {
            Ok(text) => text,
            Err(_) => {
                return Ok(Body::Withheld("it is not valid JSON, so the paths that are configured could not be found"));
            }
        }
    } else {
        pass.text(text)?
    };
    Ok(Body::Text(match (&whole, redacted) {
        // Nothing was found: the bytes are shared, not copied.
        (Cow::Borrowed(_), Cow::Borrowed(same)) => Text::shared(body.slice(..same.len())),
        (_, redacted) => Text::from(redacted.into_owned()),
    }))
}

fn binary(pass: &mut Pass<'_>, media_type: &str, body: &Bytes) -> Result<Body, Stop> {
    let hides = HIDING.iter().any(|start| body.starts_with(start));
    // Whoever names a type by itself means what there is in it; `image/*` means pictures.
    let is_mislabelled = hides
        && ["image/", "audio/", "video/"].iter().any(|media| media_type.starts_with(media))
        && !pass.rules.names_binary(media_type);
    if pass.rules.keeps_binary(media_type) && !is_mislabelled {
        return Ok(match pass.holds_known(body)? {
            true => Body::Withheld(HOLDS_SECRET),
            false => Body::Binary(body.clone()),
        });
    }
    if hides {
        return Ok(Body::Withheld("it is of a binary format that could not be searched for secrets"));
    }
    searched(pass, body)
}

/// Bytes of any kind, if no secret is in the texts that they hold.
pub(super) fn searched(pass: &mut Pass<'_>, body: &Bytes) -> Result<Body, Stop> {
    // The letters of UTF-16 are the letters of ASCII between zeros.
    let lossy = String::from_utf8_lossy(body);
    let lossy = if lossy.contains('\0') { Cow::Owned(lossy.replace('\0', "")) } else { lossy };
    Ok(match pass.text(&lossy)? {
        Cow::Borrowed(_) => Body::Binary(body.clone()),
        Cow::Owned(_) => Body::Withheld(HOLDS_SECRET),
    })
}

/// UTF-8 without zeros, or as much of it as a cut in the middle of a character leaves.
fn is_text(body: &[u8]) -> bool {
    let utf8 = std::str::from_utf8(body).map_or_else(|error| error.error_len().is_none(), |_| true);
    utf8 && !body.contains(&0)
}
