//! An exchange as a program tells it, and texts as programs write them.
//!
//! What does not fit is said by the name of its field and without its value: it may hold personal data.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::task::transcript::{Exchange, Message, Phases, Response};

/// Times beyond the year 9999 are cut to it.
const LATEST_MS: u64 = 253_402_300_799_000;

/// A text whose lone surrogates (`"\ud83d"`, half a character, as a program writes that cuts in the middle of one) have
/// become replacement characters: serde takes it for no text at all.
#[derive(Default)]
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a text")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(String::from_utf8_lossy(bytes).into_owned()))
            }
        }

        from.deserialize_bytes(Bytes)
    }
}

/// Reads a field of a message; what is wrong with it is said by the path to it.
pub(super) fn read<T: DeserializeOwned>(name: &str, raw: Option<&RawValue>) -> Result<T, String> {
    let raw = raw.ok_or_else(|| format!("the field {name} is missing"))?;
    let mut from = serde_json::Deserializer::from_str(raw.get());
    serde_path_to_error::deserialize(&mut from).map_err(|error| {
        let path = match error.path().to_string() {
            path if path == "." => name.to_owned(),
            path => format!("{name}.{path}"),
        };
        // A missing field is named by serde alone; whatever else it says may quote the value.
        let said = error.inner().to_string();
        match said.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            Some(missing) => format!("the field {path}.{missing} is missing"),
            None => format!("the field {path} does not fit its type"),
        }
    })
}

#[derive(Deserialize)]
pub(super) struct Fields {
    method: Text,
    url: Text,
    started_ms: Option<u64>,
    #[serde(default)]
    request: MessageFields,
    response: Option<ResponseFields>,
    error: Option<Text>,
    #[serde(default)]
    timings: Timings,
}

#[derive(Deserialize, Default)]
struct MessageFields {
    #[serde(default)]
    headers: Vec<(Text, Text)>,
    body: Option<Text>,
    #[serde(default)]
    base64: bool,
    body_bytes: Option<u64>,
}

/// A message with a status. It is not made by `flatten`, which would read the texts in another way.
#[derive(Deserialize)]
struct ResponseFields {
    status: u16,
    #[serde(default)]
    headers: Vec<(Text, Text)>,
    body: Option<Text>,
    #[serde(default)]
    base64: bool,
    body_bytes: Option<u64>,
}

#[derive(Deserialize, Default)]
struct Timings {
    #[serde(default)]
    blocked_ms: f64,
    #[serde(default)]
    waiting_ms: f64,
    #[serde(default)]
    receiving_ms: f64,
}

impl Fields {
    pub(super) fn read(self) -> Result<Box<Exchange>, String> {
        let response = match self.response {
            Some(ResponseFields { status, headers, body, base64, body_bytes }) => {
                let message = MessageFields { headers, body, base64, body_bytes };
                Some(Response { status, message: message.read("exchange.response.body")? })
            }
            None => None,
        };
        let started = self.started_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms.min(LATEST_MS)));
        let time = |ms: f64| Duration::try_from_secs_f64(ms / 1_000.0).unwrap_or_default();
        Ok(Box::new(Exchange {
            started: started.unwrap_or_else(SystemTime::now),
            request: self.request.read("exchange.request.body")?,
            method: self.method.0,
            url: self.url.0,
            response,
            error: self.error.map(|error| error.0),
            fault: None,
            phases: Phases {
                blocked: time(self.timings.blocked_ms),
                waiting: time(self.timings.waiting_ms),
                receiving: time(self.timings.receiving_ms),
            },
        }))
    }
}

impl MessageFields {
    fn read(self, name: &str) -> Result<Message, String> {
        let text = self.body.unwrap_or_default().0;
        let body = match self.base64 {
            true => BASE64_STANDARD.decode(text).map_err(|_| format!("the field {name} is not base64"))?,
            false => text.into_bytes(),
        };
        let body_bytes = self.body_bytes.unwrap_or_default().max(body.len() as u64);
        let headers = self.headers.into_iter().map(|(name, value)| (name.0, value.0)).collect();
        Ok(Message { headers, body: Bytes::from(body), body_bytes })
    }
}
