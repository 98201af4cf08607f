//! What the SDK has received, in memory. The SDK tells nobody when a flag changes, but it writes each change into its store,
//! and this is one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use launchdarkly_server_sdk::{
    AllData, DataKind, PersistentDataStore, PersistentDataStoreFactory, PersistentStoreError, SerializedItem,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::ALLOW_JUMP;
use super::link::Link;
use crate::settings::TABLE;

/// A store of flags and segments that says when it changes. Clones share it.
#[derive(Clone)]
pub(super) struct Items {
    held: Arc<Mutex<Held>>,
    link: Arc<Link>,
}

#[derive(Default)]
struct Held {
    flags: HashMap<String, SerializedItem>,
    segments: HashMap<String, SerializedItem>,
    is_initialized: bool,
}

/// The settings' flags and what they refer to, by their versions: the document of this source.
#[derive(Default, Serialize)]
struct Listing {
    flags: BTreeMap<String, u64>,
    segments: BTreeMap<String, u64>,
}

/// The part of a flag or a segment that refers to others.
#[derive(Default, Deserialize)]
#[serde(default)]
struct References {
    prerequisites: Vec<Prerequisite>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Prerequisite {
    key: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Rule {
    clauses: Vec<Clause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Clause {
    op: String,
    values: Vec<serde_json::Value>,
}

impl Items {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Items { held: Arc::default(), link }
    }

    /// A flag as it was received; none where there is none, or no more.
    pub(super) fn flag(&self, key: &str) -> Option<String> {
        let held = self.held.lock();
        held.flags.get(key).filter(|flag| !flag.deleted).map(|flag| flag.serialized_item.clone())
    }

    /// The document.
    pub(super) fn document(&self) -> Vec<u8> {
        let held = self.held.lock();
        let mut listing = Listing::default();
        let mut flags: BTreeSet<String> = TABLE.iter().map(|spec| spec.key.to_owned()).collect();
        flags.insert(ALLOW_JUMP.into());
        let mut segments = BTreeSet::new();
        while let Some(key) = flags.pop_first() {
            if let Some(flag) = held.flags.get(&key).filter(|flag| !flag.deleted)
                && listing.flags.insert(key, flag.version).is_none()
            {
                let references = References::of(flag);
                flags.extend(references.prerequisites.iter().map(|flag| flag.key.clone()));
                segments.extend(references.segments());
            }
        }
        while let Some(key) = segments.pop_first() {
            if let Some(segment) = held.segments.get(&key).filter(|segment| !segment.deleted)
                && listing.segments.insert(key, segment.version).is_none()
            {
                segments.extend(References::of(segment).segments());
            }
        }
        serde_json::to_vec(&listing).expect("keys and numbers are JSON")
    }
}

impl References {
    /// What is no flag refers to nothing, and the SDK says what is wrong with it.
    fn of(item: &SerializedItem) -> Self {
        serde_json::from_str(&item.serialized_item).unwrap_or_default()
    }

    fn segments(&self) -> impl Iterator<Item = String> {
        let clauses = self.rules.iter().flat_map(|rule| &rule.clauses).filter(|clause| clause.op == "segmentMatch");
        clauses.flat_map(|clause| &clause.values).filter_map(|value| value.as_str().map(str::to_owned))
    }
}

impl PersistentDataStoreFactory for Items {
    fn create_persistent_data_store(&self) -> Result<Box<dyn PersistentDataStore>, std::io::Error> {
        Ok(Box::new(self.clone()))
    }
}

impl PersistentDataStore for Items {
    fn init(&mut self, all: AllData<SerializedItem, SerializedItem>) -> Result<(), PersistentStoreError> {
        *self.held.lock() = Held { flags: all.flags, segments: all.segments, is_initialized: true };
        self.link.changed();
        Ok(())
    }

    fn flag(&self, key: &str) -> Result<Option<SerializedItem>, PersistentStoreError> {
        Ok(self.held.lock().flags.get(key).cloned())
    }

    fn segment(&self, key: &str) -> Result<Option<SerializedItem>, PersistentStoreError> {
        Ok(self.held.lock().segments.get(key).cloned())
    }

    fn all_flags(&self) -> Result<HashMap<String, SerializedItem>, PersistentStoreError> {
        Ok(self.held.lock().flags.clone())
    }

    fn upsert(&mut self, kind: DataKind, key: &str, item: SerializedItem) -> Result<bool, PersistentStoreError> {
        let mut held = self.held.lock();
        let items = match kind {
            DataKind::Flag => &mut held.flags,
            DataKind::Segment => &mut held.segments,
        };
        // Messages may come twice, or late.
        if items.get(key).is_some_and(|known| known.version >= item.version) {
            return Ok(false);
        }
        items.insert(key.to_owned(), item);
        drop(held);
        self.link.changed();
        Ok(true)
    }

    fn is_initialized(&self) -> bool {
        self.held.lock().is_initialized
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn item(version: u64, item: Value) -> SerializedItem {
        SerializedItem { version, deleted: item.is_null(), serialized_item: item.to_string() }
    }

    #[test]
    fn the_document_lists_the_settings_and_what_they_refer_to() {
        let mut items = Items::new(Arc::default());
        let matches = |segment: &str| json!([{"clauses": [{"op": "segmentMatch", "values": [segment]}]}]);
        let flags = [
            ("max_parallelism", item(3, json!({"prerequisites": [{"key": "may_raise"}], "rules": matches("pilots")}))),
            ("may_raise", item(5, json!({"prerequisites": [{"key": "max_parallelism"}], "rules": []}))),
            ("log_level", item(9, Value::Null)),
            ("checkout-button", item(70, json!({"rules": matches("customers")}))),
        ];
        let segments = [
            ("pilots", item(2, json!({"included": [], "rules": matches("more")}))),
            ("more", item(4, json!({}))),
            ("customers", item(8, json!({}))),
        ];
        let named = |items: &[(&str, SerializedItem)]| {
            items.iter().map(|(key, item)| ((*key).to_owned(), item.clone())).collect::<HashMap<_, _>>()
        };
        items.init(AllData { flags: named(&flags), segments: named(&segments) }).expect("taken");
        let document = || String::from_utf8(items.document()).expect("JSON");
        let expected = r#"{"flags":{"max_parallelism":3,"may_raise":5},"segments":{"more":4,"pilots":2}}"#;
        assert_eq!(document(), expected);

        let mut writer = items.clone();
        assert!(writer.upsert(DataKind::Flag, "checkout-button", item(71, json!({}))).expect("taken"));
        assert!(!writer.upsert(DataKind::Segment, "more", item(4, json!({}))).expect("taken"), "not twice");
        assert!(!writer.upsert(DataKind::Flag, "log_level", item(8, json!({}))).expect("taken"), "not late");
        assert_eq!(document(), expected, "a flag of others changes nothing");
        assert!(writer.upsert(DataKind::Segment, "more", item(5, json!({}))).expect("taken"));
        assert_ne!(document(), expected);
    }
}
