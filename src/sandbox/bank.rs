//! The bank's data: a function of the seed and of what is asked for.
//!
//! An account's id is drawn from its customer, and all else about the account from its id, so that the bank knows each
//! account without keeping any. Nobody's data is in it. What is here is the bank's own dialect; `open_banking.rs` and
//! `fdx.rs` tell the same accounts and transactions in other words.

use std::fmt::Write;

/// Bytes of one transaction as JSON, about: what a body's size is planned with.
pub(super) const TRANSACTION_BYTES: usize = 200;

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

/// What the bank knows of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) id: String,
    /// `current`, `savings` or `card`.
    pub(super) kind: &'static str,
    pub(super) iban: String,
    pub(super) currency: &'static str,
    pub(super) balance: Amount,
}

/// Never negative; which way it goes is said beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amount {
    whole: u64,
    cents: u64,
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}", self.whole, self.cents)
    }
}

/// A booked transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transaction {
    id: u64,
    reference: u64,
    month: u64,
    day: u64,
    pub(super) is_debit: bool,
    pub(super) amount: Amount,
    pub(super) party: &'static str,
    pub(super) currency: &'static str,
}

/// The customer's accounts, one to three.
pub(super) fn accounts(seed: u64, customer: &str) -> Vec<Account> {
    let mut random = Random::new(seed, &["customer", customer]);
    let count = 1 + random.below(3);
    (0..count).filter_map(|_| Account::find(seed, &format!("acc-{:016x}", random.next()))).collect()
}

impl Account {
    /// The account of this id, if it is one.
    pub(super) fn find(seed: u64, id: &str) -> Option<Account> {
        let digits = id.strip_prefix("acc-").unwrap_or_default();
        if digits.len() != 16 || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut random = Random::new(seed, &["account", id]);
        let (kind, currency) = (random.one_of(&KINDS), random.one_of(&CURRENCIES));
        let number = random.below(1_000_000_000_000_000_000);
        let iban = format!("DE{:02}{number:018}", iban_check(number));
        let balance = Amount { whole: random.below(100_000), cents: random.below(100) };
        Some(Account { id: id.to_owned(), kind, iban, currency, balance })
    }

    pub(super) fn write(&self, json: &mut String) {
        let Account { id, kind, iban, currency, balance } = self;
        let _ = write!(
            json,
            r#"{{"id":"{id}","kind":"{kind}","iban":"{iban}","currency":"{currency}","balance":"{balance}"}}"#
        );
    }
}

/// The transactions of an account, latest first: as many as fit into a body of about `size_bytes` in the bank's own
/// dialect, at least one. A page of any kind in any dialect is a part of this list.
pub(super) fn transactions(seed: u64, account: &Account, size_bytes: usize) -> impl Iterator<Item = Transaction> {
    let mut random = Random::new(seed, &["transactions", &account.id]);
    let mut used_bytes = body_head(account).len();
    let mut count = 0;
    std::iter::from_fn(move || {
        if count > 0 && used_bytes + TRANSACTION_BYTES / 2 >= size_bytes {
            return None;
        }
        let transaction = Transaction::draw(&mut random);
        used_bytes += transaction.json_bytes() + usize::from(count > 0);
        count += 1;
        Some(transaction)
    })
}

/// What a body of transactions begins with.
pub(super) fn body_head(account: &Account) -> String {
    format!(r#"{{"account":"{}","transactions":["#, account.id)
}

impl Transaction {
    fn draw(random: &mut Random) -> Self {
        let (id, reference) = (random.next(), random.next());
        let is_debit = random.below(3) > 0;
        let amount = Amount { whole: random.below(2_000), cents: random.below(100) };
        let (month, day) = (1 + random.below(12), 1 + random.below(28));
        let (party, currency) = (random.one_of(&PARTIES), random.one_of(&CURRENCIES));
        Transaction { id, reference, month, day, is_debit, amount, party, currency }
    }

    pub(super) fn id(&self) -> String {
        format!("tx-{:016x}", self.id)
    }

    pub(super) fn reference(&self) -> String {
        format!("invoice {:016x}", self.reference)
    }

    /// The day as `2025-06-30`.
    pub(super) fn booked(&self) -> String {
        format!("2025-{:02}-{:02}", self.month, self.day)
    }

    pub(super) fn write(&self, json: &mut String) {
        let Transaction { id, reference, month, day, is_debit, amount, party, currency } = self;
        let sign = if *is_debit { "-" } else { "" };
        let _ = write!(
            json,
            concat!(
                r#"{{"id":"tx-{id:016x}","booked":"2025-{month:02}-{day:02}","amount":"{sign}{amount}","#,
                r#""currency":"{currency}","counterparty":"{party}","reference":"invoice {reference:016x}","#,
                r#""status":"booked"}}"#
            ),
            id = id,
            month = month,
            day = day,
            sign = sign,
            amount = amount,
            currency = currency,
            party = party,
            reference = reference
        );
    }

    /// How long it is as JSON, counted rather than written: most of it has a fixed length.
    fn json_bytes(&self) -> usize {
        const FIXED_BYTES: usize = 157;
        let digits = self.amount.whole.checked_ilog10().map_or(1, |digits| digits as usize + 1);
        FIXED_BYTES + usize::from(self.is_debit) + digits + self.party.len()
    }
}

/// The check digits of a German IBAN (ISO 13616: mod 97 over the number, "DE" as 1314, and "00").
fn iban_check(number: u64) -> u64 {
    let value = u128::from(number) * 1_000_000 + 131_400;
    98 - (value % 97) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str) -> Account {
        Account::find(1, id).expect("an account")
    }

    #[test]
    fn the_same_question_has_the_same_answer_and_another_seed_is_another_bank() {
        assert_eq!(accounts(1, "c1"), accounts(1, "c1"));
        assert_ne!(accounts(1, "c1"), accounts(2, "c1"));
        assert_ne!(accounts(1, "c1"), accounts(1, "c2"));
        let listed = &accounts(1, "c\"1")[0];
        assert_eq!(&account(&listed.id), listed);
    }

    #[test]
    fn the_length_of_a_transaction_is_counted_right() {
        for transaction in transactions(1, &account("acc-0123456789abcdef"), 100_000) {
            let mut json = String::new();
            transaction.write(&mut json);
            assert_eq!(json.len(), transaction.json_bytes(), "{json}");
            serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
        }
    }

    #[test]
    fn transactions_have_about_the_asked_size() {
        let account = account("acc-0123456789abcdef");
        for size in [1_000, 16_384, 200_000] {
            let bytes = |transaction: Transaction| transaction.json_bytes() + 1;
            let total: usize = body_head(&account).len() + transactions(1, &account, size).map(bytes).sum::<usize>();
            assert!(total.abs_diff(size) <= TRANSACTION_BYTES, "{total} for {size}");
        }
        assert_eq!(transactions(1, &account, 0).count(), 1, "at least one");
    }

    #[test]
    fn other_ids_are_no_accounts() {
        for id in ["", "acc-", "acc-0123456789abcdeg", "acc-0123456789ABCDEF", "acc-0123456789abcdef0"] {
            assert!(Account::find(1, id).is_none(), "{id}");
        }
    }

    #[test]
    fn ibans_are_valid() {
        assert_eq!(iban_check(370_400_440_532_013_000), 89, "the example of ISO 13616");
    }
}
