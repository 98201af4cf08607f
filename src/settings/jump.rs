//! Whether workers would refuse a change of N as a jump, judged by what they say of themselves. Pure.
//!
//! What a worker compares a new N with is its own: what it has, and what it was started with. Whoever changes the document
//! knows neither, and may have another start value in the configuration at hand. So each worker says in the registry how far
//! it would go ([`Arrival::jump_limit`](super::Arrival)), and the document is evaluated as each of them will. Of a worker no
//! zone is known here: a rule that asks for it is evaluated as for one without.

use serde_json::json;

use super::flagd::{ALLOW_JUMP, Document, Flag};
use super::mark::RAISE;
use super::targeting::Context;
use super::{Settings, examine, spec, strict_json};
use crate::task::{PoolName, WorkerId};

/// The setting that can jump.
pub const KEY: &str = "max_parallelism";

/// What a worker has, and how far it would go at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub worker: WorkerId,
    /// The pool that it serves in.
    pub pool: PoolName,
    /// Its N.
    pub n: u32,
    /// The most that N may become with the next document.
    pub limit: u32,
}

/// What workers would do with a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged<'a> {
    /// How many of them the change is for: what the document says of N is another value than before.
    pub meant: usize,
    /// Those who would refuse it as a jump, and the value that they would refuse.
    pub refuse: Vec<(&'a Standing, u64)>,
}

/// Which workers would refuse what a new document says of N, or why it is none. Without a document before, or with one that
/// nobody takes, it is another value for all.
pub fn judge<'a>(before: Option<&[u8]>, after: &[u8], workers: &'a [Standing]) -> Result<Judged<'a>, String> {
    let before = before.and_then(|document| Document::read(document).ok());
    let after = Document::read(after).map_err(|error| format!("the document is none: {error}"))?;
    let mut judged = Judged::default();
    for standing in workers {
        let was = before.as_ref().and_then(|document| said(document, standing));
        let Some(Flag { value, allow_jump }) = said(&after, standing) else { continue };
        if was.is_some_and(|was| was.value == value) {
            continue;
        }
        judged.meant += 1;
        if let Some(value) = value.as_u64().filter(|value| !allow_jump && *value > u64::from(standing.limit)) {
            judged.refuse.push((standing, value));
        }
    }
    Ok(judged)
}

/// The same where no worker can be asked: by what the documents say of N to one that no rule is for, with these start values.
pub fn compare(before: &[u8], after: &[u8], start: &Settings, max_jump: f64) -> Result<(), String> {
    let context = Context::default();
    let (before, after) = (Document::read(before)?, Document::read(after)?);
    let ((before, _), (next, _)) = (examine(&before, start, &context), examine(&after, start, &context));
    let is_allowed = matches!(after.flag(KEY, &context), Ok(Some(Flag { allow_jump: true, .. })));
    let checked =
        spec(KEY).filter(|_| !is_allowed).map_or(Ok(()), |spec| spec.check_jump(start, &before, &next, max_jump));
    checked.map_err(|jump| format!("{KEY} = {}", jump.in_a_command()))
}

/// The document, which says itself that its N may be a jump.
pub fn allowed(document: &str) -> Result<String, String> {
    let mut parsed = strict_json::read(document.as_bytes()).map_err(|error| format!("the document {error}"))?;
    let Some(flag) = parsed.pointer_mut(&format!("/flags/{KEY}")) else { return Ok(document.to_owned()) };
    let metadata = flag.as_object_mut().map(|flag| flag.entry("metadata").or_insert_with(|| json!({})));
    match metadata.and_then(|metadata| metadata.as_object_mut()) {
        Some(metadata) => metadata.insert(ALLOW_JUMP.into(), true.into()),
        None => return Err(format!("{KEY} of the document, or its metadata, is not an object")),
    };
    Ok(format!("{parsed:#}\n"))
}

/// The document without what it says of the change that made it: that N may jump, and the mark of a raise.
pub fn without_past_change(document: &str) -> Result<String, String> {
    let mut parsed = strict_json::read(document.as_bytes()).map_err(|error| format!("the document {error}"))?;
    let metadata = parsed.pointer_mut(&format!("/flags/{KEY}/metadata")).and_then(|it| it.as_object_mut());
    let said = metadata.map(|metadata| [ALLOW_JUMP, RAISE].map(|word| metadata.remove(word).is_some()));
    let is_changed = said.is_some_and(|said| said.contains(&true));
    Ok(if is_changed { format!("{parsed:#}\n") } else { document.to_owned() })
}

/// What the document says to a worker; none where it leaves it its start value, or says what is no value: neither is a jump.
fn said(document: &Document, standing: &Standing) -> Option<Flag> {
    let Standing { worker, pool, .. } = standing.clone();
    document.flag(KEY, &Context { pool, worker: Some(worker), ..Context::default() }).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::flagd;

    fn standing(worker: &str, pool: &str, n: u32, limit: u32) -> Standing {
        let (worker, pool) = (worker.parse().expect("an id"), pool.parse().expect("a pool"));
        Standing { worker, pool, n, limit }
    }

    fn to(n: u32) -> String {
        flagd::document(&[(KEY, json!(n)), ("payload_sampling", json!(0.4))])
    }

    fn refused(before: Option<&str>, after: &str, workers: &[Standing]) -> (usize, Vec<(String, u64)>) {
        let judged = judge(before.map(str::as_bytes), after.as_bytes(), workers).expect("documents");
        let named = judged.refuse.iter().map(|(standing, value)| (standing.worker.to_string(), *value));
        (judged.meant, named.collect())
    }

    #[test]
    fn each_worker_is_judged_by_its_own_limit() {
        let workers =
            [standing("low", "a", 3, 30), standing("high", "a", 30, 300), standing("younger", "b", 3, 100_000)];
        assert_eq!(refused(Some(&to(3)), &to(30), &workers), (3, vec![]));
        assert_eq!(refused(Some(&to(3)), &to(200), &workers), (3, vec![("low".into(), 200)]));
        assert_eq!(refused(None, &to(301), &workers), (3, vec![("low".into(), 301), ("high".into(), 301)]));
        let allowed = to(301).replace("\"state\"", "\"metadata\": {\"allow_jump\": true}, \"state\"");
        assert_eq!(refused(Some(&to(3)), &allowed, &workers), (3, vec![]));
        assert_eq!(refused(Some(&to(3)), &to(200), &[]), (0, vec![]));
    }

    #[test]
    fn only_those_whose_value_changes_are_meant() {
        let workers = [standing("one", "a", 3, 30), standing("other", "b", 3, 30)];
        let ruled = |n: u32, default: u32| {
            let rule = json!({"if": [{"===": [{"var": "pool"}, "b"]}, "here", null]});
            let flag = json!({"state": "ENABLED", "variants": {"here": n, "usual": default}, "defaultVariant": "usual",
                "targeting": rule});
            json!({"flags": {KEY: flag}}).to_string()
        };
        assert_eq!(refused(Some(&to(3)), &ruled(200, 3), &workers), (1, vec![("other".into(), 200)]));
        // What one refuses already is no doing of another change.
        assert_eq!(refused(Some(&ruled(200, 3)), &ruled(200, 4), &workers), (1, vec![]));
        assert_eq!(refused(Some(&to(3)), r#"{"flags": {}}"#, &workers), (0, vec![]), "back to where it started");
        assert!(judge(None, b"{", &workers).expect_err("none").contains("not JSON"));
    }

    #[test]
    fn where_nobody_can_be_asked_the_documents_are_compared_and_one_may_say_that_it_jumps() {
        let start = Settings { max_parallelism: 5, ..super::super::Config::default().start() };
        let compared = |before: u32, after: &str| compare(to(before).as_bytes(), after.as_bytes(), &start, 10.0);
        assert_eq!(
            (compared(3, &to(50)), compared(20, &to(200))),
            (Ok(()), Ok(())),
            "from the start value, or from what was"
        );
        let refused = compared(3, &to(51)).expect_err("a jump");
        assert!(refused.starts_with("max_parallelism = 51 is more than 10 times the 5"), "{refused}");
        assert!(refused.contains("--allow-jump"), "{refused}");

        let says_so = allowed(&to(51)).expect("a document");
        assert_eq!(compared(3, &says_so), Ok(()));
        assert!(compared(3, &without_past_change(&says_so).expect("a document")).is_err(), "that was said before");
        assert_eq!(without_past_change(&to(51)).as_ref(), Ok(&to(51)));
        let marked = super::super::mark::mark(&to(51), KEY, "by me");
        assert_eq!(super::super::mark::marked(without_past_change(&marked).expect("a document").as_bytes(), KEY), None);
        assert_eq!(allowed(r#"{"flags": {}}"#).as_deref(), Ok(r#"{"flags": {}}"#), "there is nothing that could jump");
        assert!(allowed(r#"{"flags": {"max_parallelism": 7}}"#).expect_err("no flag").contains("is not an object"));
        assert!(allowed("{").expect_err("no document").starts_with("the document "));
    }
}
