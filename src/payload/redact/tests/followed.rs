//! What is a secret in one place, for its name or by a path, is left in no other.

use super::*;

/// A run that is given a login and uses it wherever a bank may want it, and that reads an account out of an answer.
fn login(input: &str, used: &str, encoded: &str) -> Record {
    let mut record = record("t-1");
    record.task.input = json(input);
    record.outcome.result = Ok(json(format!(r#"{{"login": "as {used}"}}"#)));
    let exchange = &mut record.transcript.exchanges[0];
    exchange.url = format!("https://bank/users/{encoded}/x?page={encoded}");
    exchange.request = plain_message("application/x-www-form-urlencoded", format!("user=u&word={encoded}").as_bytes());
    let body = format!(r#"<p title="{used}">{used}</p>"#);
    exchange.response = Some(Response { status: 200, message: plain_message("text/html", body.as_bytes()) });
    let note = |text: String| Note { at: SystemTime::UNIX_EPOCH, text, is_cut: false };
    record.transcript.notes.push(note(format!("logged in with {used}.")));
    record.transcript.notes.push(note(format!("packed {}", STANDARD.encode(format!("a text with {used}")))));
    record
}

#[test]
fn a_value_that_its_name_gives_away_is_left_nowhere() {
    for (input, used, encoded) in [
        (r#"{"password":"CANARY-9/x y"}"#, "CANARY-9/x y", "CANARY-9%2Fx+y"),
        (r#"{"password":"geheim"}"#, "geheim", "geheim"),
        (r#"{"login":{"psu":{"pin":"48151"}}}"#, "48151", "48151"),
        (r#"{"pin":48151}"#, "48151", "48151"),
        (r#"{"m":"Authorization: Bearer CANARY.1234.567"}"#, "CANARY.1234.567", "CANARY.1234.567"),
        (r#"{"m":"Bearer CANARY.1234.567"}"#, "CANARY.1234.567", "CANARY.1234.567"),
        (r#"{"credentials":{"id":7,"one":"CANARY-1234"}}"#, "CANARY-1234", "CANARY-1234"),
        (r#"{"m":"credentials:\n  password: CANARY-1234\n  of: me"}"#, "CANARY-1234", "CANARY-1234"),
        (r#"{"m":"?a\u003db\u0026token\u003dCANARY-1234\u0026x"}"#, "CANARY-1234", "CANARY-1234"),
        (r#"{"m":"{\u0022token\u0022:\u0022CANARY-1234\u0022}"}"#, "CANARY-1234", "CANARY-1234"),
        (r#"{"m":"\u003cpin\u003eCANARY-1234\u003c/pin\u003e"}"#, "CANARY-1234", "CANARY-1234"),
        (r#"{"m":"{\"m\":\"token\\u003dCANARY-1234\"}"}"#, "CANARY-1234", "CANARY-1234"),
        (r#"{"cookie":"a=b; sid=CANARY-1234; Path=/x/y"}"#, "CANARY-1234", "CANARY-1234"),
        (r#"{"to":"https://u:CANARY-1234@bank/x"}"#, "CANARY-1234", "CANARY-1234"),
        (r#"[{"name":"pin","value":"48151"}]"#, "48151", "48151"),
    ] {
        let stored = stored(login(input, used, encoded));
        for left in [used, encoded, &STANDARD.encode(format!("a text with {used}"))[16..]] {
            assert!(!stored.contains(left), "{left} of {input} is in {stored}");
        }
        let document: Value = serde_json::from_str(&stored).expect("JSON");
        let url = document["transcript"]["log"]["entries"][0]["request"]["url"].as_str().expect("a URL");
        let numbers: Vec<u32> = placeholders(url).map(|it| it.number).collect();
        assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{url}");
    }
}

#[test]
fn a_value_is_known_in_the_escapes_of_programs_and_of_latin_1() {
    for form in [
        "CAN%C9RY-9",
        r"\x43\x41\x4e\xc9\x52\x59\x2d\x39",
        r"\u{43}AN\u{0000c9}RY-9",
        r"CAN\xc3\x89RY-9",
        "CAN\\u00c9RY-9",
    ] {
        let body = serde_json::json!({"password": "CANÉRY-9", "m": format!("as {form}.")}).to_string();
        let redacted = answer(&Redactor::default(), answered(&body));
        assert_eq!(redacted, r#"{"password":"[redacted-1]","m":"as [redacted-1]."}"#, "{form}");
    }
}

#[test]
fn a_value_that_is_followed_hides_no_other_secret() {
    for body in [
        r#"[{"name":&quot;Key","value":"v , Bearer CANARY-1234567, "}]"#,
        r#"{"pin":"my password", "m":"my password=CANARY-1234567"}"#,
        r#"{"pin":"a; Basic", "m":"a; Basic Q0FOQVJZOkNBTkFSWS0xMjM0NTY3"}"#,
    ] {
        let redacted = answer(&Redactor::default(), answered(body));
        assert!(!redacted.contains("CANARY") && !redacted.contains("Q0FOQVJZ"), "{redacted}");
    }
}

/// What is followed here reaches out of the quotes in which it begins, and over the secret.
#[test]
fn a_value_that_is_cut_hides_no_other_secret_that_it_overlaps() {
    let secret = "n/CANARY-1234567+é";
    let entities: String = secret.chars().map(|it| format!("&#{};", u32::from(it))).collect();
    let mut record = answered(&format!(r#"%22 "<password>":"~d>[[", {entities}, "]]>"#));
    record.transcript.secrets.push(secret.to_owned());
    let redacted = answer(&Redactor::default(), record);
    assert!(!redacted.contains(&entities[..20]), "{redacted}");
}

#[test]
fn what_an_authorization_header_holds_is_left_nowhere() {
    for (header, value, used) in [
        ("Authorization", "Bearer CANARY.1234.567", "CANARY.1234.567"),
        ("Authorization", "Basic dXNlcjpDQU5BUlktMTIzNA==", "CANARY-1234"),
        ("X-Api-Key", "CANARY-1234", "CANARY-1234"),
        ("Cookie", "a=b; sid=CANARY-1234", "CANARY-1234"),
    ] {
        let mut record = login("{}", used, used);
        record.transcript.exchanges[0].request.headers.push((header.into(), value.into()));
        let stored = stored(record);
        assert!(!stored.contains(used), "{used} of {header} is in {stored}");
    }
}

#[test]
fn what_stands_for_a_named_secret_is_no_secret_itself() {
    let answered = |secret: &str, body: &str| {
        let mut record = answered(body);
        record.transcript.secrets.push(secret.into());
        record
    };
    for body in [
        r#"{"authorization":"Bearer CANARY-1234","same":"CANARY-1234"}"#,
        r#"{"cookie":"sid=CANARY-1234; Path=/","same":"CANARY-1234"}"#,
        r#"{"to":"https://u:CANARY-1234@bank","same":"CANARY-1234"}"#,
    ] {
        let redacted = answer(&Redactor::default(), answered("CANARY-1234", body));
        let parsed: Value = serde_json::from_str(&redacted).expect("JSON");
        assert_eq!(parsed["same"], "[redacted-1]", "{redacted}");
    }
    // As a replay names it.
    let body = r#"{"authorization":"Bearer [redacted-1]","same":"[redacted-1]"}"#;
    let redacted = answer(&Redactor::default(), answered("[redacted-1]", body));
    assert_eq!(redacted, r#"{"authorization":"[redacted-1]","same":"[redacted-1]"}"#);
    let mut record = answered("[redacted-1]", "{}");
    record.transcript.exchanges[0].url = "https://bank/[redacted-1]/x?page=%5Bredacted-1%5D".into();
    let stored = stored(record);
    assert!(stored.contains("https://bank/[redacted-1]/x?page=%5Bredacted-1%5D"), "{stored}");
}

#[test]
fn what_a_path_leads_to_is_left_nowhere() {
    let redactor = redactor(r#"{"paths": {"*": ["$..account", "$.holder"]}, "keep_query": ["*"]}"#);
    let input = r#"{"account": {"id": "acc-0042-7781"}, "holder": "Erika Muster", "n": [{"account": 1234567}]}"#;
    for used in ["acc-0042-7781", "Erika Muster", "1234567"] {
        let stored = stored_by(&redactor, login(input, used, &used.replace(' ', "%20")));
        for left in [used, &used.replace(' ', "%20")] {
            assert!(!stored.contains(left), "{left} is in {stored}");
        }
    }
}

#[test]
fn what_is_no_secret_by_chance_stays() {
    let input = r#"{"token":"transactions","key":"account","pin":"12","session":1234,"secret":true,"password":"null"}"#;
    let redacted = stored(login(input, "transactions account 12 1234 true null", "transactions"));
    assert!(redacted.contains("as transactions account 12 1234 true null"), "{redacted}");
    let redacted =
        answer(&Redactor::default(), answered(r#"{"pin":"4815","geheim":"x","n":48150,"password":"geheim"}"#));
    assert_eq!(redacted, r#"{"pin":"[redacted-1]","geheim":"x","n":48150,"password":"[redacted-2]"}"#);
}

#[test]
fn a_known_value_of_several_words_is_taken_as_a_whole_behind_a_name_without_quotes() {
    for password in ["CANARY-9 w0rd", "CANARY-9;w0rd", "CANARY-9,w0rd & more"] {
        let mut record = record("t-1");
        // Before it is known.
        record.task.input = json(format!(r#"{{"m":"tried password: {password}"}}"#));
        let note = |text: String| Note { at: SystemTime::UNIX_EPOCH, text, is_cut: false };
        record.transcript.notes.push(note(format!("wrong password: {password}.")));
        record.transcript.notes.push(note(format!(r#"{{"password": "{password}"}}"#)));
        let stored = stored(record);
        assert!(!stored.contains("CANARY") && !stored.contains("w0rd"), "{password} is in {stored}");
        assert!(stored.contains("tried password: [redacted-1]\"") && stored.contains("wrong password: [redacted-1]."));
    }
}

#[test]
fn a_private_key_line_by_line_in_notes_is_left_nowhere() {
    let mut record = record("t-1");
    for line in
        ["-----BEGIN RSA PRIVATE KEY-----", "MIICANARYAAA", "CANARYBBB=", "-----END RSA PRIVATE KEY-----", "after"]
    {
        let text = format!("stderr: {line}");
        record.transcript.notes.push(Note { at: SystemTime::UNIX_EPOCH, text, is_cut: false });
    }
    let stored = stored(record);
    assert!(!stored.contains("CANARY") && stored.contains("stderr: after"), "{stored}");
}

#[test]
fn of_a_link_header_the_urls_stay() {
    let mut record = record("t-1");
    let mut message = plain_message("application/json", b"[]");
    let link = "<https://bank/x?page=2&access_token=CANARY>; rel=\"next\", <https://bank/x?page=1>; rel=\"first\"";
    message.headers.push(("link".into(), link.into()));
    record.transcript.exchanges[0].response = Some(Response { status: 200, message });
    let stored = stored(record);
    let expected =
        r#"<https://bank/x?page=2&access_token=[redacted-1]>; rel=\"next\", <https://bank/x?page=1>; rel=\"first\""#;
    assert!(stored.contains(expected), "{stored}");
}

#[test]
fn a_pin_is_no_part_of_an_amount_or_a_date() {
    let answered = answered(
        r#"{"pin":"4711","amount":"4711.00","balance":0.4711,"day":"4711-12-01","euro":"-4711,00","all":[4711,17],"code":"4711"}"#,
    );
    let expected = r#"{"pin":"[redacted-1]","amount":"4711.00","balance":0.4711,"day":"4711-12-01","euro":"-4711,00","all":["[redacted-1]",17],"code":"[redacted-1]"}"#;
    assert_eq!(answer(&Redactor::default(), answered), expected);
}

#[test]
fn a_binary_body_with_a_known_value_in_utf_16_is_withheld() {
    let mut record = record("t-1");
    record.task.input = json(r#"{"password":"CANARY-1234"}"#.to_owned());
    let utf_16: Vec<u8> = "the word is CANARY-1234".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let message = plain_message("application/octet-stream", &utf_16);
    record.transcript.exchanges[0].response = Some(Response { status: 200, message });
    let document: Value = serde_json::from_str(&stored(record)).expect("JSON");
    let content = &document["transcript"]["log"]["entries"][0]["response"]["content"];
    assert!(content["text"].is_null(), "{content}");
}

#[test]
fn what_a_cut_leaves_of_a_value_that_is_followed_is_left_out() {
    let mut record = login(r#"{"password":"CANARY-1234"}"#, "x", "x");
    let mut message = plain_message("text/plain", b"the word is CANARY-1");
    message.body_bytes = 1 << 20;
    record.transcript.exchanges[0].response = Some(Response { status: 200, message });
    let stored = stored(record);
    assert!(!stored.contains("CANARY"), "{stored}");
}

#[test]
fn thousands_of_values_at_a_path_are_followed_in_time_as_far_as_there_is_room() {
    let redactor = redactor(r#"{"paths": {"*": ["$..account"]}}"#);
    let accounts: Vec<String> = (0..20_000).map(|it| format!(r#"{{"account":"acc-{:08}"}}"#, 31 * it)).collect();
    let mut record = answered(&format!("[{}]", accounts.join(",")));
    record.transcript.exchanges[0].url = "https://bank/acc-00000031/x".into();
    let document: Value = serde_json::from_str(&stored_by(&redactor, record)).expect("JSON");
    assert_eq!(
        document["transcript"]["log"]["entries"][0]["request"]["url"], "https://bank/[redacted-2]/x",
        "{document}"
    );
}

#[test]
fn paths_lead_into_forms_queries_and_event_streams() {
    let redactor = redactor(r#"{"paths": {"*": ["$..account", "$.x.deep"]}, "keep_query": ["*"]}"#);
    for (content_type, body, expected) in [
        ("application/x-www-form-urlencoded", "a=1&account=ab%2Fc&deep=2", "a=1&account=[redacted-1]&deep=2"),
        (
            "text/event-stream",
            "data: {\"id\":1,\ndata: \"access_token\":\ndata: \"CANARY-7011\",\ndata: \"account\":7}\n\nid: 5\n",
            "data: {\"id\":1,\ndata: \"access_token\":\ndata: \"[redacted-2]\",\ndata: \"account\":\"[redacted-1]\"}\n\nid: 5\n",
        ),
        (
            "text/event-stream",
            "event: x\ndata: {\"account\":\"abc\",\"n\":1}\n\ndata: {\"x\":{\"deep\":5}}\n\ndata: end\n",
            "event: x\ndata: {\"account\":\"[redacted-1]\",\"n\":1}\n\ndata: {\"x\":{\"deep\":\"[redacted-2]\"}}\n\ndata: end\n",
        ),
        // What stands between the lines of one value does not part them.
        (
            "text/event-stream; charset=utf-8",
            "\u{feff}data: {\"access_token\":\n: ping\ndata: \"one CANARY\",\nid: 7\ndata\ndata: \"account\":7}\n\n: token=x1y2\n",
            "\u{feff}data: {\"access_token\":\n: ping\ndata: \"[redacted-2]\",\nid: 7\ndata\ndata: \"account\":\"[redacted-1]\"}\n\n: \
             token=[redacted-3]\n",
        ),
        (
            "text/event-stream",
            "data: {\"access_token\":\rdata: \"one CANARY\"}\r\rdata: x\r\n\r\ndata",
            "data: {\"access_token\":\rdata: \"[redacted-1]\"}\r\rdata: x\r\n\r\ndata",
        ),
        (
            "text/event-stream",
            "data: -----BEGIN PRIVATE KEY-----\ndata: MIICANARY\n: x\ndata: -----END PRIVATE KEY-----\ndata: after\n\n",
            "data: -----BEGIN PRIVATE KEY-----[redacted-1]-----END PRIVATE KEY-----\ndata: after\n: x\n\n",
        ),
    ] {
        let mut record = record("t-1");
        record.transcript.exchanges[0].response =
            Some(Response { status: 200, message: plain_message(content_type, body.as_bytes()) });
        assert_eq!(answer(&redactor, record), expected);
    }
    let mut record = record("t-1");
    record.transcript.exchanges[0].url = "https://bank/x?account=abc".into();
    assert!(stored_by(&redactor, record).contains("https://bank/x?account=[redacted-1]"));
}
