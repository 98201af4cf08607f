//! Secrets of every kind, in every encoding, in every place: none of them comes through.

use base64::engine::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;

/// A secret of each kind: what must not come through of it, and how it is written so that it can be known as one.
const SECRETS: &[(&str, &str)] = &[
    ("4929123412341232", "4929123412341232"),
    ("4929 1234 1234 1232", "4929 1234 1234 1232"),
    ("4929-1234-1234-1232", "4929-1234-1234-1232"),
    ("4929  1234  1234  1232", "4929  1234  1234  1232"),
    ("4929123412341232", "0004929123412341232"),
    ("4929123412341232", "4929123412341232.0"),
    ("4929123412341232=29121010000000000", ";4929123412341232=29121010000000000?"),
    ("DE02120300000000202051", "DE02120300000000202051"),
    ("DE02 1203 0000 0000 2020 51", "DE02 1203 0000 0000 2020 51"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJDQU5BUlkiOjF9.Q0FOQVJZ", "eyJhbGciOiJIUzI1NiJ9.eyJDQU5BUlkiOjF9.Q0FOQVJZ"),
    ("CANARY-bearer/1+2==", "Bearer CANARY-bearer/1+2=="),
    ("Q0FOQVJZOmJhc2lj", "Basic Q0FOQVJZOmJhc2lj"),
    ("canary+mail@bank.example", "canary+mail@bank.example"),
    ("CANARY named/é \"quoted\"", "CANARY named/é \"quoted\""),
];

/// The last of them is known because the run named it.
const NAMED: &str = "CANARY named/é \"quoted\"";

/// The ways in which a text is written into another.
fn encodings(text: &str) -> Vec<String> {
    let escaped = |text: &str| {
        let quoted = Value::from(text).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let percent =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let unicode: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    let entities: String = text
        .chars()
        .map(|it| if it.is_alphanumeric() { it.to_string() } else { format!("&#{};", it as u32) })
        .collect();
    let form: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    let base64 = |text: &str| STANDARD.encode(format!("a text with {text}"));
    let url_safe = |text: &str| URL_SAFE_NO_PAD.encode(text);
    vec![
        text.to_owned(),
        escaped(text),
        escaped(&escaped(text)),
        escaped(text).replace('/', "\\/"),
        percent(text),
        lowercase(&percent(text)),
        percent(&percent(text)),
        unicode.clone(),
        escaped(&unicode),
        entities,
        form,
        base64(text),
        escaped(&base64(text)),
        url_safe(&format!("{{\"any\": {}}}", Value::from(text))),
    ]
}

/// With the hexadecimal digits of escapes in lowercase.
fn lowercase(percent: &str) -> String {
    let mut parts = percent.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "%" + &part[..2].to_lowercase() + &part[2..])
}

/// What a reader could take for the secret: the secret, and its digits and letters alone.
fn assert_gone(stored: &str, secret: &str) {
    let plain = decoded::plain(stored);
    let bare = |text: &str| text.chars().filter(|it| it.is_alphanumeric()).collect::<String>().to_lowercase();
    for text in [stored, &plain] {
        assert!(!text.contains(secret), "{secret} is in {stored}");
        assert!(!bare(text).contains(&bare(secret)), "{secret} is in {stored}");
    }
}

fn everything() -> Redactor {
    redactor(r#"{"detect": ["card", "iban", "jwt", "bearer", "basic", "email"], "keep_query": ["*"]}"#)
}

/// A record with `text` in every place, as is and in words.
fn planted(text: &str, in_json: &str, in_url: &str) -> Record {
    let mut record = record("t-1");
    record.transcript.secrets.push(NAMED.to_owned());
    let note = |text: String| Note { at: SystemTime::UNIX_EPOCH, text, is_cut: false };
    record.transcript.notes.extend([note(text.to_owned()), note(format!("got {text}, then\n{text}."))]);
    let document = format!(r#"{{"a":"{in_json}","b":["x {in_json} y"],"c":{{"{in_json}":1}}}}"#);
    record.task.input = json(document.clone());
    record.outcome.result = Err(Failure::new(FailureCode::Integration, format!("no {text} here"), Remedy::Retry));
    for (name, content_type, body) in [
        ("page.html", "text/html", format!("<p>{text}</p><!-- {text} -->")),
        ("log.txt", "", format!("1: {text}\r\n2: '{text}'")),
        ("data.json", "application/json", document.clone()),
        ("blob", "application/octet-stream", format!("\u{1}{text}\u{0}\u{2}")),
    ] {
        let (body, at) = (Bytes::from(body), SystemTime::UNIX_EPOCH);
        let body_bytes = body.len() as u64;
        let (name, content_type) = (name.into(), content_type.into());
        record.transcript.attachments.push(Attachment { at, name, content_type, body, body_bytes });
    }
    let exchange = &mut record.transcript.exchanges[0];
    exchange.url = format!("https://bank/{in_url}/x/{in_url}?filter={in_url}&{in_url}=1#{in_url}");
    exchange.error = Some(format!("could not send {text} to bank"));
    exchange.request =
        plain_message("application/x-www-form-urlencoded", format!("f={in_url}&g=1&{in_url}").as_bytes());
    for name in ["Authorization", "Cookie", "X-Unheard-Of", "User-Agent", "X-Request-Id", "Referer"] {
        exchange.request.headers.push((name.into(), text.into()));
    }
    exchange.request.headers.push((format!("X-{text}"), "1".into()));
    let mut message = plain_message("application/json", document.as_bytes());
    message.headers.push(("Location".into(), format!("https://u:{in_url}@bank/cb?code={in_url}")));
    exchange.response = Some(Response { status: 200, message });
    record
}

#[test]
fn secrets_of_each_kind_in_each_encoding_and_place_do_not_come_through() {
    let redactor = everything();
    for (secret, written) in SECRETS {
        for encoding in encodings(written) {
            // In JSON and in URLs only what can stand there.
            let is_json = serde_json::from_str::<Value>(&format!("\"{encoding}\"")).is_ok();
            let is_url = encoding.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\&#".contains(&byte));
            let in_json = if is_json { &encoding } else { "x" };
            let in_url = if is_url { &encoding } else { "x" };
            let stored = stored_by(&redactor, planted(&encoding, in_json, in_url));
            assert_gone(&stored, secret);
            assert!(!stored.contains(&encoding), "{encoding} is in {stored}");
            assert!(serde_json::from_str::<Value>(&stored).is_ok());
        }
    }
}

#[test]
fn a_secret_after_a_credentials_name_does_not_come_through() {
    let texts = [
        (
            r#"{"password":"CANARY","deep":{"pin":"CANARY","x":"{\"client_secret\":\"CA\\\"NARY CANARY\"}"}}"#,
            "application/json",
        ),
        (r#"[{"name":"X-Api-Key","value":"CANARY"},{"name": "n", "value": "kept-1"}]"#, "application/json"),
        (r#"{"url":"https://u:CANARY@b/?next=https%3A%2F%2Fc%2F%3Faccess_token%3DCANARY"}"#, "application/json"),
        ("<s:Password type=\"text\">CANARY</s:Password><n>kept-1</n>", "text/xml"),
        ("<token><value>CANARY</value></token><n>kept-1</n>", "text/xml"),
        ("<password><![CDATA[CANARY < CANARY]]></password>", "application/xml"),
        ("<data>&lt;password&gt;CANARY&lt;/password&gt;</data>", "application/soap+xml"),
        ("<input type=\"hidden\" name=\"csrf_token\" value=\"CANARY\"/>", "text/html"),
        ("<meta name='csrf-token' content='CANARY'>", "text/html"),
        ("Cookie: a=CANARY; b=CANARY\r\nkept-1", "text/plain"),
        ("cvv=CANARY&otp=CANARY&json=%7B%22pin%22%3A%22CANARY%22%7D", "application/x-www-form-urlencoded"),
        ("var c = {apiKey: 'CANARY', n: 'kept-1'};", "application/javascript"),
        (r#"{"authorization":["Bearer CANARY"],"cookies":{"a":"CANARY"}}"#, "application/json"),
        ("{\"token\":\"CANA", "application/json"),
        (r#"{"cvvCode":"CANARY","password2":"CANARY","otp_code":"CANARY","n":"kept-1"}"#, "application/json"),
        (r#"[{"key":"api_key","value":"CANARY"},{"value":"CANARY","name":"pin"}]"#, "application/json"),
        ("<input value=\"CANARY\" type=\"hidden\" name=\"csrf_token\"><i>kept-1</i>", "text/html"),
        ("Authorization: ApiKey CANARY\r\nkept-1", "text/plain"),
        (r#"{"m":"failed: password=\u00e9CANARY\u0026n=kept-1"}"#, "application/json"),
        ("secret := \"CANARY\"; n := \"kept-1\"", "text/plain"),
        ("['token' => 'CANARY', \"pin\" => \"CANARY\", psu-pin => CANARY, n => kept-1]", "text/plain"),
        ("pull --password CANARY --api-key 'CANARY CANARY' --limit kept-1", "text/plain"),
        ("a:\n  password: |\n    CANARY\n    CANARY\n  n: kept-1", "application/yaml"),
        (r#"{"log":"pin: >-\n  CANARY\n\n  CANARY\nn: kept-1","c":"x --token \"CANARY\""}"#, "application/json"),
        ("Authorization: Digest username=\"CANARY\", nc=1, response=\"CANARY\"\r\nkept-1", "text/plain"),
        (r#"{"h":"Authorization: Digest username=\"CANARY\", response=\"CANARY\"","n":"kept-1"}"#, "application/json"),
        ("onlinePin=CANARY&login_tan=CANARY&smsOtp=CANARY&shipping=kept-1", "text/plain"),
        ("-----BEGIN PRIVATE KEY-----\nCANARY\nCANARY\n-----END PRIVATE KEY-----\nkept-1", "text/plain"),
    ];
    for (text, content_type) in texts {
        let mut record = record("t-1");
        let message = plain_message(content_type, text.as_bytes());
        record.transcript.exchanges[0].response = Some(Response { status: 200, message });
        let note = Note { at: SystemTime::UNIX_EPOCH, text: text.to_owned(), is_cut: false };
        record.transcript.notes.push(note);
        let stored = stored(record);
        assert!(!stored.contains("CANA"), "{text}: {stored}");
        assert_eq!(stored.contains("kept-1"), text.contains("kept-1"), "{text}: {stored}");
    }
}

#[test]
fn what_a_cut_leaves_of_a_secret_does_not_come_through() {
    let redactor = everything();
    for (secret, written) in SECRETS {
        for (content_type, before) in
            [("application/json", "{\"a\":\"x \""), ("text/plain", "some text: "), ("text/xml", "<a>")]
        {
            let whole = format!("{before}{written}");
            let begins = before.len() + written.len() - secret.len();
            // Only with its @ an address can be known.
            let begins = begins + secret.find('@').unwrap_or(0);
            for end in (begins + 1..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
                let mut record = record("t-1");
                record.transcript.secrets.push(NAMED.to_owned());
                let mut message = plain_message(content_type, &whole.as_bytes()[..end]);
                message.body_bytes = 1 << 20;
                record.transcript.exchanges[0].response = Some(Response { status: 200, message });
                let left: Value = serde_json::from_str(&stored_by(&redactor, record)).expect("JSON");
                let left = left["transcript"]["log"]["entries"][0]["response"]["content"]["text"].to_string();
                // A start of a few characters says nothing.
                let start: String = secret[..end - (whole.len() - secret.len())].chars().take(8).collect();
                assert!(start.chars().count() < 8 || !left.contains(&start), "{start} is in {left}");
            }
        }
    }
}
