//! Headers of a step, answers without a body, and what a wrong step is refused with.

use super::*;

fn api() -> Router {
    let echo = |headers: HeaderMap| async move {
        let text = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().ok()).collect::<Vec<_>>();
        Body(json!({ "accept": text("accept"), "id": text("x-id"), "client": text("x-client"), "run": text("x-run") }))
    };
    Router::new().route("/echo", get(echo)).route("/empty", get(|| async { StatusCode::NO_CONTENT }))
}

#[tokio::test]
async fn a_steps_headers_are_templates_and_come_instead_of_the_integrations() {
    let bank = Bank::serving(api()).await;
    let toml = r#"
        headers = { x-client = "weir", x-run = "{{ task.run }}", x-id = "{{ uuid() }}" }
        steps = [
            { name = "own", path = "/echo", headers = { X-Client = "{{ input.client }}", Accept = "application/vnd.bank+json", x-id = "{{ input.none }}" } },
            { name = "shared", path = "/echo" },
            { name = "empty", path = "/empty" },
        ]
        result = ["{{ steps.own }}", "{{ steps.shared }}", "{{ steps.empty }}"]
    "#;
    let context = testing::context(r#"{"client": "mine", "none": null}"#);
    let output: Value = serde_json::from_str(&bank.run_in(toml, &context).await.expect("it runs")).expect("JSON");
    let run = json!([context.run().to_string()]);
    let own = json!({ "accept": ["application/vnd.bank+json"], "id": [], "client": ["mine"], "run": run });
    assert_eq!(output[0], own);
    assert_eq!(output[1]["accept"], json!(["application/json"]));
    assert_eq!((&output[1]["client"], &output[1]["run"]), (&json!(["weir"]), &run));
    let id = uuid::Uuid::parse_str(output[1]["id"][0].as_str().expect("a text")).expect("a UUID");
    assert_eq!(id.get_version_num(), 4);
    assert_eq!(output[2], Value::Null);

    let error = bank.run(toml, r#"{"client": "a\nb", "none": null}"#).await.expect_err("no header");
    assert!(error.message.contains("the value of header x-client is not valid"), "{error}");
    bank.stop().await;
}

#[test]
fn a_wrong_step_is_refused_with_key_value_and_what_would_be_right() {
    let telemetry = Telemetry::new().expect("a recorder");
    let page = r#"pagination = { kind = "page", items = "{{ body }}" "#;
    for (more, step, says) in [
        ("", "parallel = 2", "steps[0].parallel: there is no for_each that it could limit"),
        ("", "max_items = 2", "steps[0].max_items: there is no for_each"),
        ("", "for_each = \"{{ input }}\", parallel = 0", "steps[0].parallel: 0 is out of range: use 1 to 64"),
        ("", "for_each = \"{{ input }}\", max_items = 100001", "use 1 to 100000"),
        ("", "for_each = \"{{ item }}\"", "steps[0].for_each: {{ item }} uses \"item\""),
        ("", "query = { a = \"{{ item }}\" }", "steps[0].query.a: {{ item }} uses \"item\""),
        ("", "value = \"{{ status }}\"", "steps[0].value: {{ status }} uses \"status\""),
        ("", "when = \"input.x\"", "steps[0].when: \"input.x\" is not one expression"),
        ("", "headers = { \"a b\" = 1 }", "steps[0].headers: header name \"a b\" is not valid"),
        ("", "headers = { a = \"x\\ny\" }", "steps[0].headers: the value of header a is not valid"),
        ("", "headers = { a = \"{{ body }}\" }", "steps[0].headers.a: {{ body }} uses \"body\""),
        ("", "timeout = \"0s\"", "steps[0].timeout: 0s is out of range: use more than 0s and at most 1h"),
        ("", "retries = { attempts = 0 }", "steps[0].retries.attempts: 0 is out of range"),
        ("", "errors = [{ remedy = \"none\" }]", "steps[0].errors[0].status: it is left out"),
        ("", &format!("query = {{ page = 1 }}, {page} }}"), "steps[0].query.page: pagination sets it: leave it out"),
        ("", &format!("{page}, max_pages = 0 }}"), "steps[0].pagination.max_pages: 0 is out of range"),
        ("retries.attempts = 11", "", "retries.attempts: 11 is out of range: use 1 to 10"),
        ("max_requests = 0", "", "max_requests: 0 is out of range: use 1 to 1000000"),
        ("max_bytes = 0", "", "max_bytes: 0 is out of range"),
        ("headers = { a = \"{{ steps.b }}\" }", "", "headers.a: {{ steps.b }} uses step \"b\""),
        ("errors = [{ status = [7], remedy = \"none\" }]", "", "errors[0].status: 7 is no status: use 100 to 599"),
    ] {
        let toml = format!("base_url = \"http://h/\"\n{more}\nsteps = [{{ name = \"a\", path = \"/\", {step} }}]");
        let error = Http::new(&"bank".parse().expect("a name"), &parse(&toml), &telemetry).err().expect(says);
        assert!(error.to_string().starts_with(says) || error.to_string().contains(says), "{says:?}: {error}");
    }
}
