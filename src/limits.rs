//! How much a worker may run at a time, and of what: what the settings say and the gate enforces.
//!
//! Ground floor: the settings publish these values and the gate holds them, and neither has heard of the other. In JSON
//! and in the configuration, limits by name are an object in which `"*"` stands for all names that are not listed:
//! `{"*": "50%", "bank": 10}`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::task::{IntegrationName, InvalidName, Tenant};

/// The most slots of a worker.
pub const MAX_SLOTS: u32 = 100_000;

/// The entry that stands for all names that are not listed. It is no valid name itself.
pub const OTHERS: &str = "*";

/// All limits of a gate, which change as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// N: how many slots may be held.
    pub target: u32,
    /// The share of N, from 0 to 1, that batch tasks may not hold.
    pub interactive_reserve: f64,
    /// The slots that the tasks of one integration may hold.
    pub integration_caps: ByName<IntegrationName, Cap>,
    /// The slots that the tasks of one tenant may hold.
    pub tenant_caps: ByName<Tenant, Cap>,
    /// The slots that a task holds; one where nothing is said.
    pub weights: ByName<IntegrationName, Weight>,
}

impl Limits {
    /// N alone, without a reserve or caps.
    pub fn of(target: u32) -> Self {
        Limits {
            target,
            interactive_reserve: 0.0,
            integration_caps: ByName::default(),
            tenant_caps: ByName::default(),
            weights: ByName::default(),
        }
    }

    /// The slots that batch tasks may not hold: the share of N, rounded up. It leaves them one slot at least, unless it
    /// is the whole of N: otherwise a low N would end batch work although nobody said so.
    pub fn reserve(&self) -> u32 {
        let reserve = part(self.interactive_reserve, self.target);
        if self.interactive_reserve < 1.0 { reserve.min(self.target.saturating_sub(1)) } else { reserve }
    }
}

/// How many slots may be held.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Cap {
    /// So many; 0 takes nothing new.
    Slots(u32),
    /// A share of N, above 0 and up to 1; rounded up, so that it is never nothing.
    Share(f64),
}

impl Cap {
    /// The slots that it allows of N: never more than there are.
    pub fn of(self, target: u32) -> u32 {
        match self {
            Cap::Slots(slots) => slots.min(target),
            Cap::Share(share) => part(share, target).max(1).min(target),
        }
    }
}

/// A share of N, rounded up.
fn part(share: f64, target: u32) -> u32 {
    // Decimals are not exact: 0.07 × 100 is a little more than 7, and is to be 7.
    const INEXACT: f64 = 1e-6;
    (share * f64::from(target) - INEXACT).ceil().clamp(0.0, f64::from(target)) as u32
}

impl TryFrom<Value> for Cap {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let slots = |value: &Value| integer(value).filter(|slots| *slots <= MAX_SLOTS).map(Cap::Slots);
        let share = |text: &str| -> Option<Cap> {
            let percent: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
            (percent > 0.0 && percent <= 100.0).then_some(Cap::Share(percent / 100.0))
        };
        let cap = slots(&value).or_else(|| value.as_str().and_then(share));
        cap.ok_or_else(|| format!("use an integer from 0 to {MAX_SLOTS} or a share of N such as \"50%\""))
    }
}

impl From<Cap> for Value {
    fn from(cap: Cap) -> Value {
        match cap {
            Cap::Slots(slots) => slots.into(),
            Cap::Share(share) => format!("{}%", (share * 1e10).round() / 1e8).into(),
        }
    }
}

/// The slots that a task holds: at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Weight(u32);

impl Weight {
    /// So many slots, taken as 1 where it is 0.
    pub fn new(slots: u32) -> Self {
        Weight(slots.max(1))
    }

    /// The number.
    pub fn slots(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Weight(1)
    }
}

impl TryFrom<Value> for Weight {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let slots = integer(&value).filter(|slots| (1..=MAX_SLOTS).contains(slots));
        slots.map(Weight).ok_or_else(|| format!("use an integer from 1 to {MAX_SLOTS}"))
    }
}

impl From<Weight> for Value {
    fn from(weight: Weight) -> Value {
        weight.0.into()
    }
}

/// JSON has one kind of number: 30.0 is an integer too.
pub fn integer(value: &Value) -> Option<u32> {
    let number = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(number));
    number.map(|number| number as u32)
}

/// A value for some names, and one for all others.
#[derive(Debug, Clone, PartialEq)]
pub struct ByName<N, V> {
    /// For the names that are not listed; none where nothing holds for them.
    pub others: Option<V>,
    /// For these.
    pub named: BTreeMap<N, V>,
}

impl<N, V> Default for ByName<N, V> {
    fn default() -> Self {
        ByName { others: None, named: BTreeMap::new() }
    }
}

impl<N: Ord, V: Copy> ByName<N, V> {
    /// What holds for a name.
    pub fn get(&self, name: &N) -> Option<V> {
        self.named.get(name).copied().or(self.others)
    }

    /// Whether nothing holds for any name.
    pub fn is_empty(&self) -> bool {
        self.others.is_none() && self.named.is_empty()
    }
}

/// An entry that is not right, and what would be.
#[derive(Debug, Clone, PartialEq)]
pub struct WrongEntry {
    /// Its name as it was written.
    pub name: String,
    /// What it was given.
    pub value: Value,
    /// What is wrong with the name, or what the value may be.
    pub reason: String,
}

impl fmt::Display for WrongEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its entry {:?} is {}: {}", self.name, self.value, self.reason)
    }
}

impl<N, V> ByName<N, V>
where
    N: Ord + FromStr<Err = InvalidName>,
    V: DeserializeOwned,
{
    /// Reads an object of entries; one that is wrong makes all of it wrong.
    pub fn read(entries: &Map<String, Value>) -> Result<Self, WrongEntry> {
        let mut limits = ByName::default();
        for (name, value) in entries {
            let wrong = |reason| WrongEntry { name: name.clone(), value: value.clone(), reason };
            let limit = V::deserialize(value).map_err(|error| wrong(error.to_string()))?;
            if name == OTHERS {
                limits.others = Some(limit);
            } else {
                let name = name.parse().map_err(|error: InvalidName| wrong(format!("{error}, or \"{OTHERS}\"")))?;
                limits.named.insert(name, limit);
            }
        }
        Ok(limits)
    }
}

impl<N: fmt::Display, V: Copy + Into<Value>> ByName<N, V> {
    /// The object that reads back as this.
    pub fn write(&self) -> Map<String, Value> {
        let others = self.others.iter().map(|limit| (OTHERS.to_owned(), (*limit).into()));
        others.chain(self.named.iter().map(|(name, limit)| (name.to_string(), (*limit).into()))).collect()
    }
}

impl<'de, N, V> Deserialize<'de> for ByName<N, V>
where
    N: Ord + FromStr<Err = InvalidName>,
    V: DeserializeOwned,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Map::deserialize(deserializer)?;
        ByName::read(&entries).map_err(D::Error::custom)
    }
}

impl<N: fmt::Display, V: Copy + Into<Value>> Serialize for ByName<N, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.write().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Caps = ByName<IntegrationName, Cap>;

    fn caps(json: Value) -> Result<Caps, String> {
        Caps::read(json.as_object().expect("an object")).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn caps_are_slots_or_shares_and_read_back_as_they_were_written() {
        let written = json!({"*": "50%", "bank": 10, "broker": "12.5%", "scraper": "7%", "stopped": 0});
        let read = caps(written.clone()).expect("good");
        assert_eq!(Value::from(read.write()), written);
        assert_eq!(serde_json::from_value::<Caps>(written).expect("good"), read);
        let of = |text: &str| read.get(&text.parse().expect("a name"));
        assert_eq!(
            [of("bank"), of("stopped"), of("unlisted")],
            [Some(Cap::Slots(10)), Some(Cap::Slots(0)), Some(Cap::Share(0.5))]
        );
        assert_eq!(caps(json!({"bank": 10.0})), caps(json!({"bank": 10})));
        assert!(caps(json!({})).expect("good").is_empty());
    }

    #[test]
    fn a_wrong_entry_is_named_with_what_would_be_right() {
        for (entry, mentions) in [
            (json!({"bank": "ten"}), "its entry \"bank\" is \"ten\": use an integer from 0 to 100000 or a share"),
            (json!({"*": -1}), "its entry \"*\" is -1: use an integer"),
            (json!({"bank": 0.5}), "a share of N such as \"50%\""),
            (json!({"bank": "0%"}), "is \"0%\""),
            (json!({"bank": "101%"}), "is \"101%\""),
            (json!({"bank": "NaN%"}), "is \"NaN%\""),
            (json!({"bank": null}), "is null"),
            (json!({"bank": 100_001}), "is 100001"),
            (json!({"Bank": 1}), "integration \"Bank\" is not valid: use 1 to 64 characters of a-z"),
        ] {
            let error = caps(entry).expect_err(mentions);
            assert!(error.contains(mentions), "{error}");
        }
        let weights = |json: Value| serde_json::from_value::<ByName<IntegrationName, Weight>>(json);
        assert_eq!(weights(json!({"bank": 3})).expect("good").get(&"bank".parse().expect("a name")), Some(Weight(3)));
        let error = weights(json!({"bank": 0})).expect_err("nothing weighs nothing").to_string();
        assert_eq!(error, "its entry \"bank\" is 0: use an integer from 1 to 100000");
    }

    #[test]
    fn a_share_of_n_is_rounded_up_and_a_cap_is_never_more_than_n() {
        let share = |percent: f64, target| Cap::Share(percent / 100.0).of(target);
        assert_eq!([share(50.0, 5), share(1.0, 30), share(100.0, 30), share(50.0, 0)], [3, 1, 30, 0]);
        for percent in 1..=100 {
            assert_eq!(share(f64::from(percent), 100), percent, "decimals are not exact, but the slots are");
        }
        assert_eq!([Cap::Slots(5).of(3), Cap::Slots(0).of(3)], [3, 0]);
    }

    #[test]
    fn the_reserve_leaves_batch_a_slot_unless_it_is_all() {
        let reserve = |share, target| Limits { interactive_reserve: share, ..Limits::of(target) }.reserve();
        assert_eq!([reserve(0.2, 30), reserve(0.2, 11), reserve(0.0, 30), reserve(0.5, 0)], [6, 3, 0, 0]);
        assert_eq!([reserve(0.2, 1), reserve(0.99, 10), reserve(1.0, 10)], [0, 9, 10]);
    }
}
