//! Redacts a body of several parts (RFC 7578), each as the body that it is.

use bytes::Bytes;
use memchr::memmem;

use super::budget::Stop;
use super::message::body;
use super::names::is_sensitive;
use super::pass::Pass;
use crate::payload::record::{Body, Text};

/// The longest boundary of RFC 2046, with the dashes before it.
const MAX_BOUNDARY_BYTES: usize = 72;

const UNREADABLE: Body = Body::Withheld("its parts could not be told apart, so it could not be searched for secrets");

/// Binary parts and nested ones are left out, and say so; a body whose parts cannot be told apart is withheld.
pub(super) fn multipart(pass: &mut Pass<'_>, media_type: &str, whole: &Bytes, is_cut: bool) -> Result<Body, Stop> {
    // The media type is in lowercase: the boundary is read from the body, whose first line it is.
    let end = whole.iter().take(MAX_BOUNDARY_BYTES).position(|&byte| byte == b'\r' || byte == b'\n');
    let Some(boundary) = end.map(|end| &whole[..end]).filter(|line| line.len() > 2 && line.starts_with(b"--")) else {
        return Ok(UNREADABLE);
    };
    let declared = String::from_utf8_lossy(&boundary[2..]).to_ascii_lowercase();
    if !media_type.contains(declared.as_str()) {
        return Ok(UNREADABLE);
    }
    let mut redacted = String::new();
    let starts: Vec<usize> = memmem::find_iter(whole, boundary).collect();
    for (index, start) in starts.iter().enumerate() {
        let is_last = index + 1 == starts.len();
        let part = whole.slice(start + boundary.len()..if is_last { whole.len() } else { starts[index + 1] });
        redacted.push_str(&pass.text(&String::from_utf8_lossy(boundary))?);
        if part.starts_with(b"--") {
            redacted.push_str("--\r\n");
            break;
        }
        let Some(blank) = memmem::find(&part, b"\r\n\r\n") else {
            // A cut left a part's headers.
            break;
        };
        let (head, content) = (String::from_utf8_lossy(&part[..blank]), part.slice(blank + 4..));
        redacted.push_str(&pass.text(&head)?);
        redacted.push_str("\r\n\r\n");
        redacted.push_str(&part_text(pass, &head, content, is_cut && is_last)?);
    }
    Ok(Body::Text(Text::from(redacted)))
}

fn part_text(pass: &mut Pass<'_>, head: &str, content: Bytes, is_cut: bool) -> Result<String, Stop> {
    let end = if is_cut { "" } else { "\r\n" };
    let content = content.slice(..content.len() - if content.ends_with(b"\r\n") { 2 } else { 0 });
    let field =
        |name: &str| head.lines().find_map(|line| line.split_once(':').filter(|(it, _)| it.eq_ignore_ascii_case(name)));
    let name = field("content-disposition").and_then(|(_, value)| {
        value.split(';').find_map(|it| it.trim().strip_prefix("name=")).map(|name| name.trim_matches('"'))
    });
    if let Some(name) = name {
        let value = String::from_utf8_lossy(&content);
        let is_credential = is_sensitive(name);
        let instead = if is_credential { Some(pass.credential(name, &value)) } else { pass.at_path(name, &value) };
        if let Some(instead) = instead {
            return Ok(format!("{instead}{end}"));
        }
    }
    let media_type = field("content-type").map_or("text/plain", |(_, value)| value.trim());
    if media_type.to_ascii_lowercase().starts_with("multipart/") {
        return Ok(format!("[a part with parts of its own was left out]{end}"));
    }
    Ok(match body(pass, media_type, &content, is_cut)? {
        Body::Text(text) => format!("{}{end}", text.as_str()),
        Body::Binary(bytes) => format!("[{} binary bytes were left out]{end}", bytes.len()),
        Body::Withheld(why) => format!("[left out: {why}]{end}"),
    })
}
