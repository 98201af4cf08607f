//! What redaction costs for texts that are made to be costly: one or two things that mean something to a rule, again and
//! again to the text's end, as a text and within a JSON string.
//!
//! ```text
//! cargo bench --bench hostile
//! cargo bench --bench hostile -- '"password=\u003d"'      # this one alone, as a string of JSON
//! ```
//!
//! Whoever answers an integration chooses the text. Targets: four times the text takes at most eight times as long (what
//! grows with the square takes sixteen times); and the longest body that is kept by default is done within the default
//! `redaction.time_limit`.

#[path = "support/har.rs"]
mod har;

use std::hint::black_box;
use std::time::{Duration, Instant};

use weir::payload::Record;
use weir::payload::redact::{Config, Redactor};

/// What the rules of redaction look for, and what leads them to look further.
const THINGS: &[&str] = &[
    "password=",
    "password: ",
    "\"token\":\"",
    "token",
    "Authorization: ",
    "Bearer ",
    "Basic ",
    "Cookie: a=b; ",
    "https://",
    "user:x@",
    "eyJ",
    "eyJhbGciOiJIUzI1NiJ9.",
    "DE89 3704 ",
    "4111 1111 ",
    "-----BEGIN PRIVATE KEY-----",
    "-----END PRIVATE KEY-----",
    "BEGIN PGP PRIVATE KEY BLOCK-----",
    "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJz\n",
    "<password>",
    "</password>",
    "<password ",
    "<b>",
    "<th>pin</th><td>",
    "<![CDATA[",
    "\\u003d",
    "\\\\u0022",
    "\\u0041",
    "\\x41",
    "\\n",
    "\\",
    "\\\"",
    "\"",
    "'",
    "`",
    "%",
    "%22",
    "%25",
    "&",
    "&amp;",
    "&quot;",
    "&#64;",
    "{",
    "}",
    "[",
    "]",
    "(",
    ",",
    ":",
    ";",
    "=",
    "=>",
    "#",
    "| ",
    "- ",
    "* ",
    ".",
    "a",
    "1",
    " ",
    "\n",
    "\n  ",
    "\t",
    "\r\n--B\r\n",
    "Content-Disposition: form-data; name=\"pin\"\r\n\r\n",
    "password:\n  - ",
    "password: &a ",
    "password: |\n  ",
    "string(6) ",
    "name=\"pin\" value=",
    "\"name\":\"pin\",\"value\":",
    "\u{e9}",
    "\u{200b}",
];

const SMALL_BYTES: usize = 64 * 1024;
const GROWTH: usize = 4;
const MOST_GROWTH: f64 = 8.0;

/// Below that, what has been measured is the machine.
const WORTH_A_LOOK: Duration = Duration::from_millis(10);
const SHOWN: usize = 10;

struct Measured {
    name: String,
    time: Duration,
    growth: f64,
}

fn main() {
    let defaults = Config::default();
    let redactor = Redactor::new(&Config { time_limit: Duration::from_secs(60), ..defaults.clone() }).expect("valid");
    let mut all: Vec<Measured> = Vec::new();
    let started = Instant::now();
    let pairs =
        || THINGS.iter().flat_map(|first| std::iter::once(&"").chain(THINGS).map(move |it| format!("{first}{it}")));
    let given: Vec<String> = std::env::args().skip(1).filter_map(|it| serde_json::from_str(&it).ok()).collect();
    for unit in if given.is_empty() { pairs().collect() } else { given } {
        all.push(measured(&redactor, &unit, false));
        all.push(measured(&redactor, &unit, true));
    }
    println!("{} texts of {SMALL_BYTES} bytes and {GROWTH} times as many, in {:.0?}", all.len(), started.elapsed());
    all.sort_by_key(|it| std::cmp::Reverse(it.time));
    print("slowest", &all);
    let limit = defaults.time_limit;
    let (slowest, of) = (all[0].time, SMALL_BYTES * GROWTH);
    println!("\n{of} bytes took {slowest:.1?} at the most (redaction.time_limit: {limit:?} for a payload)\n");
    all.retain(|it| it.time >= WORTH_A_LOOK);
    all.sort_by(|a, b| b.growth.total_cmp(&a.growth));
    let above = all.iter().filter(|it| it.growth > MOST_GROWTH).count();
    print(&format!("growing fastest, {above} of them too fast"), &all);
    let fastest = all.first().map_or(0.0, |it| it.growth);
    println!("\n{fastest:.1} times at the most for {GROWTH} times the text (target: {MOST_GROWTH} or less)");
}

fn print(what: &str, all: &[Measured]) {
    println!("\n{what:<72}{:>10}{:>8}", "ms", "growth");
    for Measured { name, time, growth } in all.iter().take(SHOWN) {
        println!("{name:<72}{:>10.1}{growth:>8.1}", time.as_secs_f64() * 1e3);
    }
}

fn measured(redactor: &Redactor, unit: &str, is_json: bool) -> Measured {
    let (mut small, mut large) = (Duration::MAX, Duration::MAX);
    let bodies = [SMALL_BYTES, SMALL_BYTES * GROWTH].map(|bytes| body(unit, bytes, is_json));
    // Of what seems to grow too fast, the machine may be the cause.
    for _ in 0..5 {
        small = small.min(timed(redactor, &bodies[0]));
        large = large.min(timed(redactor, &bodies[1]));
        if large < WORTH_A_LOOK || large.as_secs_f64() / small.as_secs_f64() <= MOST_GROWTH {
            break;
        }
    }
    let name = format!("{}{unit:?}", if is_json { "JSON " } else { "" });
    Measured { name, time: large, growth: large.as_secs_f64() / small.as_secs_f64() }
}

fn body(unit: &str, bytes: usize, is_json: bool) -> Vec<u8> {
    let text = unit.repeat(bytes / unit.len());
    if is_json { serde_json::to_vec(&[text]).expect("a string") } else { text.into_bytes() }
}

fn timed(redactor: &Redactor, body: &[u8]) -> Duration {
    let record = record(body);
    let started = Instant::now();
    black_box(redactor.redact(record));
    started.elapsed()
}

fn record(body: &[u8]) -> Record {
    let mut record = har::record("t-1", 1);
    let response = record.transcript.exchanges[0].response.as_mut().expect("an answer");
    response.message.body_bytes = body.len() as u64;
    response.message.body = body.to_vec().into();
    record
}
