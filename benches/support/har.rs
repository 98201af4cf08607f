//! Records as integrations leave them: exchanges with JSON bodies that are alike and never the same.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use weir::payload::Record;
use weir::task::transcript::{Exchange, Message, Phases, Response};
use weir::task::{Json, Outcome, Priority, RunId, Task, TaskId, Timings, Transcript};

/// A record whose bodies have about `bytes` in all, in pieces of 50 KB.
pub fn record(id: &str, bytes: usize) -> Record {
    const PIECE: usize = 50_000;
    let mut noise = Noise(id.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte)));
    let sizes =
        std::iter::repeat_n(PIECE, bytes / PIECE).chain((!bytes.is_multiple_of(PIECE)).then_some(bytes % PIECE));
    let exchanges: Vec<_> = sizes.enumerate().map(|(page, size)| exchange(&mut noise, page, size)).collect();
    let recorded_bytes = exchanges.iter().map(Exchange::size_bytes).sum();
    let id: TaskId = id.parse().expect("an id");
    let task = Task {
        id: id.clone(),
        integration: "bank".parse().expect("a name"),
        tenant: Default::default(),
        priority: Priority::Batch,
        input: Json::of(&"customer-1").expect("JSON"),
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
    };
    let outcome = Outcome {
        task: id,
        run: RunId::mint(),
        result: Ok(Json::null()),
        worker: "w-1".parse().expect("an id"),
        attempt: 1,
        timings: Timings::default(),
    };
    let transcript = Transcript { exchanges, recorded_bytes, ..Transcript::default() };
    Record { task, outcome, transcript, pool: "parallel".parse().expect("a name") }
}

fn exchange(noise: &mut Noise, page: usize, bytes: usize) -> Exchange {
    let headers = |names: &[(&str, &str)]| -> Vec<_> {
        names.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let request = headers(&[
        ("accept", "application/json"),
        ("authorization", "Bearer 9f8e7d6c5b4a39281706"),
        ("user-agent", "weir"),
        ("x-request-id", "1f2e3d"),
    ]);
    let answer = headers(&[
        ("content-type", "application/json"),
        ("date", "Wed, 20 Aug 2025 05:00:00 GMT"),
        ("server", "bank"),
        ("cache-control", "no-store"),
    ]);
    let body = transactions(noise, bytes);
    let message = Message { headers: answer, body_bytes: body.len() as u64, body: body.into() };
    Exchange {
        started: SystemTime::now(),
        request: Message { headers: request, ..Message::default() },
        method: "GET".into(),
        url: format!("https://bank.example/accounts/{:x}/transactions?page={page}", noise.next()),
        response: Some(Response { status: 200, message }),
        error: None,
        fault: None,
        phases: Phases::default(),
    }
}

fn transactions(noise: &mut Noise, bytes: usize) -> Vec<u8> {
    const WHO: [&str; 6] = ["Bakery Miller", "City Transport", "Rent", "Salary", "Online Market", "Electric Company"];
    let mut text = String::from("{\"transactions\":[");
    while text.len() + 200 < bytes {
        let (id, cents, day) = (noise.next(), noise.next() % 500_000, noise.next() % 28 + 1);
        let who = WHO[(noise.next() % 6) as usize];
        let _ = write!(
            text,
            "{{\"id\":\"{id:016x}\",\"booked\":\"2025-08-{day:02}\",\"amount\":{}.{:02},\"currency\":\"EUR\",\
             \"counterparty\":\"{who}\",\"reference\":\"{:08x}\"}},",
            cents / 100,
            cents % 100,
            noise.next() as u32
        );
    }
    text.push_str("null]}");
    text.into_bytes()
}

/// The same numbers in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 29
    }
}
