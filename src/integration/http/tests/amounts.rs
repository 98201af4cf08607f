//! What expressions compute with numbers: exact, or an error that names what it met.

use crate::integration::http::expression::{Names, Scope};
use crate::integration::http::template::Template;
use crate::integration::testing;
use crate::task::RunId;

/// What an expression makes of an input.
fn computed(source: &str, input: &str) -> Result<String, String> {
    let task = testing::task(input);
    let scope = Scope { task: &task, run: RunId::mint(), steps: &[], item: None, body: None, answer: None };
    let template = Template::compile(&format!("{{{{ {source} }}}}"), Names::default())?;
    template.json(&scope).map(|json| json.into_owned())
}

#[track_caller]
fn check(cases: &[(&str, &str, &str)]) {
    for (source, input, expected) in cases {
        assert_eq!(computed(source, input).as_deref(), Ok(*expected), "{source} of {input}");
    }
}

#[track_caller]
fn check_refused(cases: &[(&str, &str, &str)]) {
    for (source, input, says) in cases {
        let error = computed(source, input).expect_err(source);
        assert!(error.contains(says), "{source} of {input}: {error}");
    }
}

#[test]
fn no_number_takes_over_the_digits_of_another() {
    check(&[
        ("input.v[0] | round(2)", r#"{"v":[1.005],"unrelated":1.000000000000000001}"#, "1.01"),
        ("input.v[0] + input.v[1]", r#"{"v":[12345678901234567890.01,0.01]}"#, "12345678901234567890.02"),
        ("input.v[0] + input.v[1]", r#"{"v":[9007199254740993.00,1]}"#, "9007199254740994.00"),
        ("input.v[0] == input.v[1]", r#"{"v":[9007199254740993.00,9007199254740992]}"#, "false"),
        ("1.000000000000000001 + 0.000000000000000001", "{}", "1.000000000000000002"),
        ("input.v[0] + input.v[1]", r#"{"v":[1.000000000000000001,0.000000000000000001]}"#, "1.000000000000000002"),
        ("12345678901234567890.9 | int", "{}", "12345678901234567890"),
        ("input.v | int", r#"{"v":12345678901234567890.9}"#, "12345678901234567890"),
        ("[input.v]", r#"{"v":1.0,"unrelated":1.000000000000000001}"#, "[1.0]"),
        (
            "[input.a, input.b, input.c]",
            r#"{"a":0.80,"b":1.50e1,"c":170141183460469231731687303715884105728}"#,
            "[0.80,1.50e1,170141183460469231731687303715884105728]",
        ),
    ]);
}

#[test]
fn operators_and_filters_are_exact() {
    check(&[
        ("(19.99 * 100) | int", "{}", "1999"),
        ("(0.29*100)|int", "{}", "29"),
        ("input.a * 100", r#"{"a":19.99}"#, "1999.0"),
        ("(0.1+0.2) ~ ' EUR'", "{}", r#""0.3 EUR""#),
        ("0.1+0.2 == 0.3", "{}", "true"),
        ("0.1+0.2 > 0.3 or not 0.1 + 0.2 <= 0.3", "{}", "false"),
        ("0.1 < 0.2 <= 0.20 != 3", "{}", "true"),
        ("1 // 0.1", "{}", "10"),
        ("7 % 2 + 7 // 2 - -1", "{}", "5"),
        ("1 / 8", "{}", "0.125"),
        ("1.1 ** 2", "{}", "1.21"),
        ("0.40 + 0.40", "{}", "0.8"),
        ("input.a + input.a", r#"{"a":0.40,"b":0.80}"#, "0.80"),
        ("(1 + 2) * 3 - 4 if 1 in [1, 2] else 0", "{}", "5"),
        ("2 not in [1] and 1 is eq(1.0) and 1.5 is float", "{}", "true"),
        ("-(0.1 + 0.2)", "{}", "-0.3"),
        ("1.005|round(2)", "{}", "1.01"),
        ("2.675|round(2)", "{}", "2.68"),
        ("-2.5 | round", "{}", "-3"),
        ("0.8 | fixed(2)", "{}", r#""0.80""#),
        ("input.a | times(100) | int", r#"{"a":"19.99"}"#, "1999"),
        ("input.a | plus('0.01') | minus(1) | abs", r#"{"a":"-19.99"}"#, r#""20.98""#),
        ("input.a | float + 1", r#"{"a":"19.99"}"#, "20.99"),
        ("input.a | map('times', 2) | list", r#"{"a":[0.1, 3]}"#, "[0.2,6]"),
        ("input.a | sum", r#"{"a":[0.1, 0.2, 7.70]}"#, "8.0"),
        ("input.a | sum", r#"{"a":[1000000000000000, 0.1]}"#, "1000000000000000.1"),
        ("input.a | sum", r#"{"a":["10.00", "0.5", 1]}"#, r#""11.50""#),
        ("input.a | sum(attribute='b.c')", r#"{"a":[{"b":{"c":"-0.05"}}]}"#, r#""-0.05""#),
        ("'a' + 'b' ~ ([1] + [2]) | join('-')", "{}", r#""ab1-2""#),
        ("{'a': [1.5, none, true]}['a'][1:]", "{}", "[null,true]"),
    ]);
}

#[test]
fn digits_stay_in_texts_too() {
    let input = r#"{"a":0.80,"b":[{"v":1.50},{"v":2.00}],"c":12345678901234567.10}"#;
    check(&[
        ("input.a ~ ' EUR ' ~ input.c", input, r#""0.80 EUR 12345678901234567.10""#),
        ("[input.a, input.c, 1] | join(', ')", input, r#""0.80, 12345678901234567.10, 1""#),
        ("input.b | join(';', attribute='v')", input, r#""1.50;2.00""#),
        ("input.b | map(attribute='v') | join(d='/')", input, r#""1.50/2.00""#),
        ("{'x': input.a, 'y': input.c} | tojson", input, r#""{\"x\":0.80,\"y\":12345678901234567.10}""#),
        ("input.a | string", input, r#""0.80""#),
    ]);
}

#[test]
fn numbers_are_put_in_the_order_of_what_they_are_or_in_none() {
    check(&[
        ("input | sort", "[2, 0.5, 1.50, -3]", "[-3,0.5,1.50,2]"),
        ("input | max", "[12345678901234567.10, 12345678901234567.11]", "12345678901234567.11"),
        (
            "input | sort(attribute='v', reverse=true) | map(attribute='v') | list",
            r#"[{"v":0.10},{"v":2}]"#,
            "[2,0.10]",
        ),
        ("input | selectattr('v', 'gt', 1) | list | length", r#"[{"v":12345678901234567.10},{"v":0.5}]"#, "1"),
        ("input[0] > 1e300", "[1e309]", "true"),
    ]);
    check_refused(&[
        ("input | sort", "[12345678901234567.10, 1]", "sort cannot put long numbers and short ones in one order"),
        ("input | max(attribute='v')", r#"[{"v":100000000000000001},{"v":1e17}]"#, "max cannot put long"),
        ("input[0] > '5'", "[5.00]", "compares a number with a text"),
        ("input[0] < 5", "[\"5.00\"]", "compares a number with a text"),
    ]);
}

#[test]
fn what_cannot_be_computed_is_named_and_its_value_is_not() {
    let long = format!(r#"{{"a":{},"b":1}}"#, "9".repeat(400));
    check(&[
        ("input.b + 1", &long, "2"),
        ("input.b + 1", r#"{"a":1e309,"b":1}"#, "2"),
        ("[input.a]", r#"{"a":1e309}"#, "[1e309]"),
    ]);
    check_refused(&[
        ("input.a + 1", &long, "+ needs numbers and met a number with too many digits"),
        ("input.a + 1", r#"{"a":1e309}"#, "+ needs numbers and met a number with too many digits"),
        ("1 / 3", "{}", "no exact decimal"),
        ("1 % 0", "{}", "divides by zero"),
        ("input.a * 2", r#"{"a":"7"}"#, "* needs numbers and met a text"),
        ("input.a + 1", r#"{"a":null}"#, "met null"),
        ("input.missing + 1", "{}", "undefined"),
        ("10 ** 38 * 10", "{}", "more digits than are computed with"),
        ("[1] * input.v", r#"{"v":100000000}"#, "* needs numbers and met a list"),
        ("'ab' * input.v", r#"{"v":100000000}"#, "* needs numbers and met a text"),
        ("input | sum", "[1, null]", "sum, at item 1, needs numbers and met null"),
        ("input | sum", r#"["1,000.00"]"#, "sum, at item 0, needs numbers and met a text that is no number"),
        ("input | sum", r#"["1."]"#, "a text that is no number"),
        ("input | sum", "[[1]]", "at item 0, needs numbers and met a list"),
        ("input | sum(attribute='v')", r#"[{"v":1},{}]"#, "at item 1, needs numbers and met nothing"),
        ("input | sum", &format!("[\"{}\"]", "9".repeat(40)), "a text whose number has too many digits"),
        ("input | sum", "3", "sum needs a list"),
        ("input | round(31)", "1.5", "at most 30"),
    ]);
}

#[test]
fn slices_see_their_names_and_these_are_checked() {
    check(&[
        ("input.a[0:1]", r#"{"a":[1.50,2]}"#, "[1.50]"),
        ("input.a[:1.0 | int] | length", r#"{"a":[1,2]}"#, "1"),
        ("input.a[input.n - 1:]", r#"{"a":[1,2],"n":2}"#, "[2]"),
    ]);
    check_refused(&[("itm[0:1]", "{}", "uses \"itm\", which is not there")]);
}
