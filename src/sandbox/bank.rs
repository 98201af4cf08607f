//! The bank's data: a function of the seed and of what is asked for.
//!
//! An account's id is drawn from its customer, and all else about the account from its id, so that the bank knows each
//! account without keeping any. Nobody's data is in it.

use std::fmt::Write;

/// Bytes of one transaction as JSON, about: what a body's size is planned with.
const TRANSACTION_BYTES: usize = 200;

const CURRENCIES: [&str; 4] = ["EUR", "EUR", "EUR", "CHF"];
const KINDS: [&str; 3] = ["current", "savings", "card"];
const PARTIES: [&str; 8] = [
    "Example Groceries",
    "Example Railway",
    "Example Salary",
    "Example Rent",
    "Example Energy",
    "Example Books",
    "Example Insurance",
    "Example Coffee",
];

/// A repeatable stream of numbers: SplitMix64 (Steele, Lea, Flood 2014), seeded by FNV-1a over a seed and keys. It is
/// written out here because the bank must be the same in each version of each library.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, keys: &[&str]) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        seed.to_le_bytes().into_iter().for_each(&mut add);
        for key in keys {
            key.bytes().for_each(&mut add);
            add(0xff);
        }
        Random(hash)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of(&mut self, of: &[&'static str]) -> &'static str {
        of[(self.next() % of.len() as u64) as usize]
    }

    /// More than 0 and less than 1.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }
}

/// The customer's accounts, one to three, as JSON. `customer` must be JSON-safe.
pub(super) fn accounts(seed: u64, customer: &str) -> String {
    let mut random = Random::new(seed, &["customer", customer]);
    let count = 1 + random.below(3);
    let mut json = format!(r#"{{"customer":{},"accounts":["#, serde_json::Value::from(customer));
    for number in 0..count {
        if number > 0 {
            json.push(',');
        }
        write_account(seed, &format!("acc-{:016x}", random.next()), &mut json);
    }
    json.push_str("]}");
    json
}

/// The account of this id as JSON, if it is one.
pub(super) fn account(seed: u64, id: &str) -> Option<String> {
    let mut json = String::new();
    is_account(id).then(|| write_account(seed, id, &mut json))?;
    Some(json)
}

/// The account's latest transactions as JSON: at most `limit`, about `size_bytes` in all.
pub(super) fn transactions(seed: u64, id: &str, limit: Option<usize>, size_bytes: usize) -> Option<String> {
    if !is_account(id) {
        return None;
    }
    let mut random = Random::new(seed, &["transactions", id]);
    let limit = limit.unwrap_or(usize::MAX);
    let mut json = String::with_capacity(size_bytes + 2 * TRANSACTION_BYTES);
    let _ = write!(json, r#"{{"account":"{id}","transactions":["#);
    let mut count = 0;
    while count < limit && (count == 0 || json.len() + TRANSACTION_BYTES / 2 < size_bytes) {
        if count > 0 {
            json.push(',');
        }
        write_transaction(&mut random, &mut json);
        count += 1;
    }
    json.push_str("]}");
    Some(json)
}

fn is_account(id: &str) -> bool {
    let digits = id.strip_prefix("acc-").unwrap_or_default();
    digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn write_account(seed: u64, id: &str, json: &mut String) {
    let mut random = Random::new(seed, &["account", id]);
    let (kind, currency) = (random.one_of(&KINDS), random.one_of(&CURRENCIES));
    let number = random.below(1_000_000_000_000_000_000);
    let iban = format!("DE{:02}{number:018}", iban_check(number));
    let (whole, cents) = (random.below(100_000), random.below(100));
    let _ = write!(
        json,
        r#"{{"id":"{id}","kind":"{kind}","iban":"{iban}","currency":"{currency}","balance":"{whole}.{cents:02}"}}"#
    );
}

fn write_transaction(random: &mut Random, json: &mut String) {
    let (id, reference) = (random.next(), random.next());
    let (sign, whole, cents) = (["", "-", "-"][random.below(3) as usize], random.below(2_000), random.below(100));
    let (month, day) = (1 + random.below(12), 1 + random.below(28));
    let (party, currency) = (random.one_of(&PARTIES), random.one_of(&CURRENCIES));
    let _ = write!(
        json,
        r#"{{"id":"tx-{id:016x}","booked":"2025-{month:02}-{day:02}","amount":"{sign}{whole}.{cents:02}","#
    );
    let _ = write!(
        json,
        r#""currency":"{currency}","counterparty":"{party}","reference":"invoice {reference:016x}","status":"booked"}}"#
    );
}

/// The check digits of a German IBAN (ISO 13616: mod 97 over the number, "DE" as 1314, and "00").
fn iban_check(number: u64) -> u64 {
    let value = u128::from(number) * 1_000_000 + 131_400;
    98 - (value % 97) as u64
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_same_question_has_the_same_answer_and_another_seed_is_another_bank() {
        assert_eq!(accounts(1, "c1"), accounts(1, "c1"));
        assert_ne!(accounts(1, "c1"), accounts(2, "c1"));
        assert_ne!(accounts(1, "c1"), accounts(1, "c2"));
        let listed: Value = serde_json::from_str(&accounts(1, "c\"1")).expect("JSON");
        let id = listed["accounts"][0]["id"].as_str().expect("an id");
        let alone: Value = serde_json::from_str(&account(1, id).expect("an account")).expect("JSON");
        assert_eq!(alone, listed["accounts"][0]);
    }

    #[test]
    fn transactions_have_about_the_asked_size() {
        let id = "acc-0123456789abcdef";
        for size in [1_000, 16_384, 200_000] {
            let json = transactions(1, id, None, size).expect("an account");
            assert!(json.len().abs_diff(size) <= TRANSACTION_BYTES, "{} for {size}", json.len());
            serde_json::from_str::<Value>(&json).expect("JSON");
        }
        let few: Value = serde_json::from_str(&transactions(1, id, Some(3), 16_384).expect("some")).expect("JSON");
        assert_eq!(few["transactions"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn other_ids_are_no_accounts() {
        for id in ["", "acc-", "acc-0123456789abcdeg", "acc-0123456789ABCDEF", "acc-0123456789abcdef0"] {
            assert!(account(1, id).is_none() && transactions(1, id, None, 100).is_none(), "{id}");
        }
    }

    #[test]
    fn ibans_are_valid() {
        assert_eq!(iban_check(370_400_440_532_013_000), 89, "the example of ISO 13616");
    }
}
