//! The redaction of URLs and forms: pairs of a name and a value between `&`, percent-encoded.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::form_urlencoded::byte_serialize;

use super::budget::Stop;
use super::detect::Kind;
use super::names::is_sensitive;
use super::pass::Pass;

impl Pass<'_> {
    /// A URL: secrets anywhere, and of query and fragment only the values of kept keys.
    pub fn url(&mut self, url: &str) -> Result<String, Stop> {
        let url = &*self.whole(url)?;
        let (rest, fragment) = url.split_once('#').map_or((url, None), |(rest, fragment)| (rest, Some(fragment)));
        let (base, query) = rest.split_once('?').map_or((rest, None), |(base, query)| (base, Some(query)));
        let mut redacted = self.text(base)?.into_owned();
        for (mark, part) in [('?', query), ('#', fragment)] {
            if let Some(part) = part {
                redacted.push(mark);
                let part = self.whole(part)?;
                redacted.push_str(&self.pairs(&part, true)?);
            }
        }
        if holds_entities(&redacted) { Ok(self.text(&redacted)?.into_owned()) } else { Ok(redacted) }
    }

    /// The body of a form.
    pub fn form<'t>(&mut self, form: &'t str) -> Result<Cow<'t, str>, Stop> {
        let pairs = match self.whole(form)? {
            Cow::Borrowed(form) => self.pairs(form, false)?,
            Cow::Owned(form) => Cow::Owned(self.pairs(&form, false)?.into_owned()),
        };
        if holds_entities(&pairs) { self.text_of(pairs) } else { Ok(pairs) }
    }

    /// What has entities in it, before it is split: the `#` or `&` of an entity would part a value from its name.
    fn whole<'t>(&mut self, pairs: &'t str) -> Result<Cow<'t, str>, Stop> {
        if holds_entities(pairs) { self.text(pairs) } else { Ok(Cow::Borrowed(pairs)) }
    }

    /// Pairs between `&`, percent-encoded; with `only_kept`, without the values of keys that are not kept.
    fn pairs<'t>(&mut self, pairs: &'t str, only_kept: bool) -> Result<Cow<'t, str>, Stop> {
        let (mut redacted, mut changed) = (String::with_capacity(pairs.len()), false);
        // RFC 6749, 4.1.3: there the code is a credential.
        let is_token_request = pairs.split('&').any(|pair| pair.starts_with("grant_type="));
        for (index, pair) in pairs.split('&').enumerate() {
            redacted.push_str(if index == 0 { "" } else { "&" });
            match self.pair(pair, only_kept, is_token_request)? {
                Cow::Borrowed(same) => redacted.push_str(same),
                Cow::Owned(other) => {
                    redacted.push_str(&other);
                    changed = true;
                }
            }
        }
        Ok(if changed { Cow::Owned(redacted) } else { Cow::Borrowed(pairs) })
    }

    fn pair<'t>(&mut self, pair: &'t str, only_kept: bool, is_token_request: bool) -> Result<Cow<'t, str>, Stop> {
        let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let (name, value) = pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value)));
        let (plain_name, plain_value) = (decoded(name), value.map(decoded));
        let is_kept = !only_kept || self.rules.keeps_query_key(&plain_name);
        let Some(plain_value) = plain_value else {
            // A key without a value may be a value without a key.
            return if is_kept || name.is_empty() {
                self.text(name)
            } else {
                Ok(Cow::Owned(self.placeholder(&plain_name)))
            };
        };
        let name_text = self.text(name)?;
        let value_text = if plain_value.is_empty() {
            return Ok(if matches!(name_text, Cow::Borrowed(_)) {
                pair.into()
            } else {
                format!("{name_text}=").into()
            });
        } else if let Some(placeholder) = self.at_path(&plain_name, &plain_value) {
            Cow::Owned(placeholder)
        } else if is_sensitive(&plain_name) || (is_token_request && plain_name == "code") {
            Cow::Owned(self.credential(&plain_name, &plain_value))
        } else if !is_kept {
            Cow::Owned(self.placeholder(&plain_value))
        } else {
            // As it is written first: where it was not encoded, a + is no space.
            let written = self.text(value.unwrap_or_default())?;
            match self.text(&decoded(&written))? {
                Cow::Borrowed(_) => written,
                Cow::Owned(changed) => Cow::Owned(encoded(&changed)),
            }
        };
        let same = matches!((&name_text, &value_text), (Cow::Borrowed(_), Cow::Borrowed(_)));
        Ok(if same { Cow::Borrowed(pair) } else { Cow::Owned(format!("{name_text}={value_text}")) })
    }
}

/// Whether a URL or a form may hold `&#64;`, which is in several of its parts at once.
fn holds_entities(text: &str) -> bool {
    text.contains("&#")
}

/// Encoded for a form or a query, placeholders apart.
fn encoded(text: &str) -> String {
    let mut encoded: String = byte_serialize(text.as_bytes()).collect();
    for kind in Kind::ALL {
        let (from, to) = (format!("%5B{}-", kind.as_str()), format!("[{}-", kind.as_str()));
        let mut parts = encoded.split(&from);
        let first = parts.next().unwrap_or_default().to_owned();
        encoded = parts.fold(first, |text, part| text + &to + &part.replacen("%5D", "]", 1));
    }
    encoded
}
