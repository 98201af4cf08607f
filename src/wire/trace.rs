//! The trace that a caller's call belongs to: it sends `traceparent` (W3C Trace Context,
//! <https://www.w3.org/TR/trace-context/#traceparent-header>), log lines of the call and its runs have the trace's id, and a
//! router passes the header on. weir makes no traces of its own.

use std::fmt;
use std::str::from_utf8;

use tonic::codegen::http::HeaderMap;
use tonic::metadata::{MetadataMap, MetadataValue};
use tracing::Span;

const TRACEPARENT: &str = "traceparent";

/// `00-` and the trace's id, the caller's id and flags, each in hex: the form of the version that everybody must take.
const LENGTH: usize = 55;

/// A caller's `traceparent`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceParent([u8; LENGTH]);

impl TraceParent {
    /// Reads one; what is not well formed counts as absent, as the standard asks.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut kept: [u8; LENGTH] = *text.first_chunk()?;
        let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_id = |part: &[u8]| is_hex(part) && part.iter().any(|byte| *byte != b'0');
        let [version, trace, caller, flags] = [&kept[..2], &kept[3..35], &kept[36..52], &kept[53..]];
        let is_separated = [2, 35, 52].iter().all(|at| kept[*at] == b'-');
        // A later version may say more behind what this one knows.
        let is_whole = text.len() == LENGTH || version != b"00" && text[LENGTH] == b'-';
        if !(is_separated && is_whole && is_hex(version) && version != b"ff")
            || !(is_id(trace) && is_id(caller) && is_hex(flags))
        {
            return None;
        }
        kept[..2].copy_from_slice(b"00");
        Some(TraceParent(kept))
    }

    /// What a call's metadata say.
    pub fn read(metadata: &MetadataMap) -> Option<Self> {
        Self::parse(metadata.get(TRACEPARENT)?.as_bytes())
    }

    /// Adds it to a call's metadata.
    pub fn write(self, metadata: &mut MetadataMap) {
        if let Ok(value) = MetadataValue::try_from(self.0.as_slice()) {
            metadata.insert(TRACEPARENT, value);
        }
    }

    /// The trace's id.
    pub fn trace_id(&self) -> &str {
        from_utf8(&self.0[3..35]).unwrap_or_default()
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(from_utf8(&self.0).unwrap_or_default())
    }
}

/// The span of a call, for the log; none where the caller has sent no trace.
pub(super) fn span(headers: &HeaderMap) -> Span {
    match headers.get(TRACEPARENT).and_then(|value| TraceParent::parse(value.as_bytes())) {
        Some(parent) => tracing::error_span!("call", trace.id = parent.trace_id()),
        None => Span::none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_trace_is_read_and_passed_on_and_nonsense_is_ignored() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let parent = TraceParent::parse(good.as_bytes()).expect("well formed");
        assert_eq!(parent.trace_id(), TRACE);
        let mut metadata = MetadataMap::new();
        parent.write(&mut metadata);
        assert_eq!(metadata.get(TRACEPARENT).expect("there").as_bytes(), good.as_bytes());
        assert_eq!(TraceParent::read(&metadata), Some(parent));

        let later = format!("cc-{TRACE}-00f067aa0ba902b7-01-more");
        assert_eq!(TraceParent::parse(later.as_bytes()), Some(parent), "what it knows of a later version");
        for nonsense in [
            "",
            "00",
            &good[..54],
            &format!("{good}-more"),
            &good.replace("00-4b", "ff-4b"),
            &good.replace("4bf9", "4BF9"),
            &good.replace("4bf9", "4bg9"),
            &good.replace(TRACE, &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replace('-', "_"),
        ] {
            assert_eq!(TraceParent::parse(nonsense.as_bytes()), None, "{nonsense}");
        }
    }
}
