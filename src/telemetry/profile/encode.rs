//! The format of pprof's profiles: `proto/pprof/profile.proto`, compressed with gzip. Go's tools, Pyroscope, Parca and
//! speedscope read it.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::Function;

/// The code generated from `proto/pprof/profile.proto`.
#[expect(missing_docs, reason = "generated; the .proto file documents it")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/perftools.profiles.rs"));
}

/// What a profile says of itself.
pub(super) struct Head {
    /// The name and the unit of each value of a sample; the last is what readers show at first.
    pub kinds: [(&'static str, &'static str); 2],
    /// What is counted between two samples, its unit, and how much of it.
    pub period: (&'static str, &'static str, u64),
    pub started: SystemTime,
    pub took: Duration,
}

/// What was seen of one stack.
pub(super) struct Sample<'s> {
    pub stack: &'s [Vec<Function>],
    pub thread: Option<&'s str>,
    pub values: [u64; 2],
}

/// A whole profile.
pub(super) fn pprof<'s>(head: &Head, samples: impl Iterator<Item = Sample<'s>>) -> Vec<u8> {
    let mut tables = Tables::default();
    // By the format, the first text is the empty one.
    tables.text("");
    let thread = tables.text("thread");
    let samples = samples.map(|sample| proto::Sample {
        location_id: sample.stack.iter().map(|frame| tables.location(frame)).collect(),
        value: sample.values.into_iter().map(signed).collect(),
        label: sample
            .thread
            .map(|name| proto::Label { key: thread, str: tables.text(name), ..Default::default() })
            .into_iter()
            .collect(),
    });
    let sample = samples.collect();
    let mut kind = |(name, unit): (&str, &str)| proto::ValueType { r#type: tables.text(name), unit: tables.text(unit) };
    let (name, unit, period) = head.period;
    let (sample_type, period_type) = (head.kinds.into_iter().map(&mut kind).collect(), kind((name, unit)));
    let started = head.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let profile = proto::Profile {
        sample_type,
        sample,
        location: tables.locations,
        function: tables.functions,
        time_nanos: nanos(started),
        duration_nanos: nanos(head.took),
        period_type: Some(period_type),
        period: signed(period),
        default_sample_type: head.kinds.last().map(|(name, _)| tables.texts[*name]).unwrap_or_default(),
        string_table: tables.in_order,
        ..Default::default()
    };
    gzip(&profile.encode_to_vec())
}

/// Texts, functions and frames are written once, and named by their number from then on.
#[derive(Default)]
struct Tables {
    texts: HashMap<String, i64>,
    in_order: Vec<String>,
    functions: Vec<proto::Function>,
    function_ids: HashMap<(i64, i64, i64), u64>,
    locations: Vec<proto::Location>,
    location_ids: HashMap<Vec<(u64, i64)>, u64>,
}

impl Tables {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(index) = self.texts.get(text) {
            return *index;
        }
        let index = self.in_order.len() as i64;
        self.in_order.push(text.to_owned());
        self.texts.insert(text.to_owned(), index);
        index
    }

    /// Ids are never 0, which means none.
    fn function(&mut self, function: &Function) -> u64 {
        let texts = (self.text(&function.name), self.text(&function.symbol), self.text(&function.file));
        let functions = &mut self.functions;
        *self.function_ids.entry(texts).or_insert_with(|| {
            let (name, system_name, filename) = texts;
            let id = functions.len() as u64 + 1;
            functions.push(proto::Function { id, name, system_name, filename, start_line: 0 });
            id
        })
    }

    fn location(&mut self, frame: &[Function]) -> u64 {
        let lines: Vec<_> = frame.iter().map(|function| (self.function(function), i64::from(function.line))).collect();
        let locations = &mut self.locations;
        *self.location_ids.entry(lines).or_insert_with_key(|lines| {
            let id = locations.len() as u64 + 1;
            let line = lines.iter().map(|(function_id, line)| proto::Line { function_id: *function_id, line: *line });
            locations.push(proto::Location { id, line: line.collect(), ..Default::default() });
            id
        })
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a vector takes what is written")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::super::tests::profile;
    use super::*;

    #[test]
    fn a_profile_reads_back_with_its_stacks_and_values() {
        let bytes = profile(&[(&["hot", "run"], 3), (&["run"], 1)]).to_pprof();
        let mut raw = Vec::new();
        GzDecoder::new(&bytes[..]).read_to_end(&mut raw).expect("gzip");
        let read = proto::Profile::decode(&raw[..]).expect("a profile");
        let text = |index: i64| read.string_table[index as usize].as_str();
        assert_eq!(read.string_table[0], "");
        let kinds: Vec<_> = read.sample_type.iter().map(|kind| (text(kind.r#type), text(kind.unit))).collect();
        assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!((read.period, read.duration_nanos), (20_000_000, 2_000_000_000));
        assert_eq!((read.time_nanos, text(read.default_sample_type)), (1_000_000_000_000, "cpu"));
        let name = |location: &u64| {
            let line = &read.location[*location as usize - 1].line[0];
            assert_eq!(line.line, 7);
            text(read.function[line.function_id as usize - 1].name)
        };
        let mut stacks: Vec<_> = read
            .sample
            .iter()
            .map(|sample| (sample.location_id.iter().map(name).collect::<Vec<_>>(), sample.value.clone()))
            .collect();
        stacks.sort();
        assert_eq!(stacks, [(vec!["hot", "run"], vec![3, 60_000_000]), (vec!["run"], vec![1, 20_000_000])]);
        assert_eq!((read.function.len(), read.location.len()), (2, 2));
        let label = &read.sample[0].label[0];
        assert_eq!((text(label.key), text(label.str)), ("thread", "weir"));
    }
}
