//! The README and the commands' help say what the code does, and what they show parses.

use clap::{CommandFactory, Parser};
use weir::cli::Cli;
use weir::config;
use weir::integration::Integrations;
use weir::settings;
use weir::task::FailureCode;
use weir::telemetry::Telemetry;
use weir::wire::{Reason, TaskError};

use crate::documents::{path, read, without_credentials};

/// The rows of README tables whose first cell is `code` in capitals or lower case, without the backticks.
fn rows() -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    read("README.md").lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

fn row(key: &str) -> Vec<String> {
    rows().into_iter().find(|row| row[0] == key).unwrap_or_else(|| panic!("the README has no row for {key}"))
}

#[test]
fn the_settings_table_is_the_codes() {
    let mut table = "| setting | unit | range | default | what it affects |\n|---|---|---|---|---|\n".to_owned();
    for spec in settings::TABLE {
        let (key, unit, range) = (spec.key, spec.unit, spec.expected());
        table.push_str(&format!("| `{key}` | {unit} | {range} | `{}` | {} |\n", spec.default(), spec.affects));
    }
    assert!(settings_table("README.md") == table, "put this table into the README:\n{table}");
}

#[test]
fn the_settings_page_has_all_that_the_code_says_of_each() {
    let mut table = "| setting | type | unit | range | default | scope | what it affects |\n".to_owned();
    table.push_str("|---|---|---|---|---|---|---|\n");
    for spec in settings::TABLE {
        let (key, unit, default) = (spec.key, spec.unit, spec.default());
        let (kind, range, scope) = (spec.type_name(), spec.range(), spec.scope);
        let row = format!("| `{key}` | {kind} | {unit} | {range} | `{default}` | {scope} | {} |\n", spec.affects);
        table.push_str(&row);
    }
    assert!(settings_table("docs/settings.md") == table, "put this table into docs/settings.md:\n{table}");
}

fn settings_table(page: &str) -> String {
    let text = read(page);
    let (_, rest) = text.split_once("a test compares it -->\n").expect("the table's start");
    rest.split_once("<!-- /settings -->").expect("the table's end").0.to_owned()
}

#[test]
fn the_errors_table_has_each_reason_as_it_is_sent() {
    for reason in Reason::ALL {
        let error = example_of(*reason);
        let code = format!("{:?}", error.to_status().code());
        let row = row(reason.as_str());
        // ResourceExhausted is RESOURCE_EXHAUSTED.
        assert_eq!(row[1].replace('_', "").to_lowercase(), code.to_lowercase(), "{reason}");
        assert_eq!([row[2].as_str(), row[3].as_str()], [error.started.as_str(), error.retry.as_str()], "{reason}");
    }
    let documented = rows().iter().filter(|row| row[0].chars().all(|c| c.is_ascii_uppercase() || c == '_')).count();
    assert_eq!(documented, Reason::ALL.len(), "a reason is documented that there is not");
}

fn example_of(reason: Reason) -> TaskError {
    match reason {
        Reason::WorkerFull => TaskError::worker_full(""),
        Reason::Draining => TaskError::draining(""),
        Reason::StaleIncarnation => TaskError::stale_incarnation(""),
        Reason::QueueFull => TaskError::queue_full("", Default::default()),
        Reason::NoWorkers => TaskError::no_workers(""),
        Reason::UnknownIntegration => TaskError::unknown_integration(""),
        Reason::InvalidTask => TaskError::invalid(""),
        Reason::DeadlineTooShort => TaskError::deadline_too_short(""),
        Reason::OutcomeUnknown => TaskError::outcome_unknown(""),
        Reason::IntegrationFull => TaskError::integration_full(""),
        Reason::TenantFull => TaskError::tenant_full(""),
        Reason::Overloaded => TaskError::overloaded(""),
        Reason::BreakerOpen => TaskError::breaker_open("", Default::default()),
    }
}

#[test]
fn each_failure_code_is_explained() {
    for code in FailureCode::ALL {
        assert_eq!(row(code.as_str()).len(), 3, "{}", code.as_str());
    }
}

/// What the README has between a fence and its end.
fn fenced(language: &str) -> String {
    let (readme, fence) = (read("README.md"), format!("```{language}\n"));
    let (_, rest) = readme.split_once(&fence).unwrap_or_else(|| panic!("the README has no {fence}"));
    rest.split_once("```").expect("it ends").0.to_owned()
}

#[test]
fn the_python_example_is_the_one_in_the_readme() {
    assert!(read("examples/submit.py").ends_with(&fenced("python")), "examples/submit.py and the README differ");
}

#[test]
fn the_rust_example_is_the_one_that_the_documentation_tests_compile() {
    let documentation = read("src/cli/worker.rs");
    let lines = documentation.lines().filter_map(|line| line.strip_prefix("///"));
    let code: Vec<_> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    assert!(code.join("\n").contains(fenced("rust").trim_end()), "src/cli/worker.rs and the README differ");
}

/// Every page, and its folder.
const PAGES: &[(&str, &str)] = &[
    ("README.md", ""),
    ("deploy/README.md", "deploy/"),
    ("docs/admission.md", "docs/"),
    ("docs/doctor.md", "docs/"),
    ("docs/exec.md", "docs/"),
    ("docs/http.md", "docs/"),
    ("docs/logs.md", "docs/"),
    ("docs/metrics.md", "docs/"),
    ("docs/overload.md", "docs/"),
    ("docs/payloads.md", "docs/"),
    ("docs/performance.md", "docs/"),
    ("docs/profiling.md", "docs/"),
    ("docs/raise.md", "docs/"),
    ("docs/redis.md", "docs/"),
    ("docs/routing.md", "docs/"),
    ("docs/runbooks.md", "docs/"),
    ("docs/sandbox.md", "docs/"),
    ("docs/settings.md", "docs/"),
    ("docs/upstream.md", "docs/"),
];

#[test]
fn each_page_is_looked_at() {
    let docs = std::fs::read_dir(path("docs")).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    for page in docs.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".md")) {
        assert!(PAGES.iter().any(|(known, _)| *known == format!("docs/{page}")), "docs/{page} is not among the pages");
    }
}

#[test]
fn the_integrations_that_a_page_shows_compile() {
    let mut shown = 0;
    for (page, _) in PAGES {
        for (toml, _) in read(page).split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```")) {
            let mut config = config::from_text(toml).unwrap_or_else(|error| panic!("{page}: {error}"));
            without_credentials(&mut config);
            let telemetry = Telemetry::new().expect("a recorder");
            Integrations::from_config(&config.integrations, &telemetry)
                .unwrap_or_else(|error| panic!("{page}: {error}"));
            shown += config.integrations.len();
        }
    }
    assert!(shown > 0, "some page shows one");
}

#[test]
fn each_link_of_a_document_leads_somewhere() {
    for (document, folder) in PAGES {
        let text = read(document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { document.to_string() } else { format!("{folder}{file}") };
            let has = |heading: &str| read(&file).lines().any(|line| line.starts_with('#') && anchor(line) == heading);
            let leads_somewhere =
                link.starts_with("https://") || path(&file).exists() && (heading.is_empty() || has(heading));
            assert!(leads_somewhere, "{document} links to {link}");
        }
    }
}

/// What a heading is called in a link: `## See it` is `see-it`.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    words.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

#[test]
fn each_command_that_a_document_shows_parses() {
    let mut shown = 0;
    for (document, _) in PAGES {
        for command in console(&read(document)).iter().flat_map(|line| weir_commands(line)) {
            parse(&command, document);
            shown += 1;
        }
    }
    assert!(shown > 10, "the pages show commands");
}

#[test]
fn each_command_has_a_help_with_an_example_that_parses() {
    let mut open = vec![Cli::command()];
    while let Some(command) = open.pop() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<_> = help.lines().flat_map(weir_commands).collect();
        let is_group = command.has_subcommands();
        assert!(is_group || !examples.is_empty(), "weir {} has no example", command.get_name());
        for example in examples {
            parse(&example, command.get_name());
        }
        open.extend(command.get_subcommands().cloned());
    }
}

/// Names, types, ranges and defaults, of all settings and no others.
#[test]
fn the_help_of_settings_lists_them_as_the_code_has_them() {
    let cells = |row: &str| -> Vec<String> {
        row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let mut expected = vec![["SETTING", "TYPE", "RANGE", "DEFAULT"].map(str::to_owned)];
    let rows = settings::TABLE.iter();
    expected.extend(rows.map(|it| [it.key.into(), it.type_name().into(), it.range(), it.default().to_string()]));
    for path in [&["settings"][..], &["settings", "set"]] {
        let mut command = &Cli::command();
        for name in path {
            command = command.find_subcommand(name).expect("a command");
        }
        let help = command.get_after_help().expect("some").to_string();
        let list = help.lines().skip_while(|line| !line.trim_start().starts_with("SETTING "));
        let listed: Vec<_> = list.take_while(|line| !line.is_empty()).map(cells).collect();
        assert_eq!(listed, expected, "weir {}", path.join(" "));
    }
}

fn parse(command: &[String], place: &str) {
    if let Err(error) = Cli::try_parse_from(command) {
        panic!("{place}: {command:?}: {error}");
    }
}

/// The command lines of the fences marked `console`, continued lines joined.
fn console(document: &str) -> Vec<String> {
    let fences = document.split("```console\n").skip(1).filter_map(|rest| rest.split_once("```"));
    fences.flat_map(|(fence, _)| fence.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The runs of weir in a line of shell, as argument lists.
fn weir_commands(line: &str) -> Vec<Vec<String>> {
    let line = line.replace("cargo run --release --", "weir");
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote, mut in_word, mut skip) = (String::new(), None, false, false);
    // The space ends the last word.
    for character in line.chars().chain([' ']) {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => (quote, in_word) = (Some(character), true),
            (None, ' ' | '|' | '&' | ';' | '(' | ')' | '>') => {
                if std::mem::take(&mut in_word) && !std::mem::take(&mut skip) {
                    commands.last_mut().expect("one at least").push(std::mem::take(&mut word));
                }
                word.clear();
                // What a redirection names is no argument.
                skip |= character == '>';
                if matches!(character, '|' | '&' | ';' | '(' | ')') {
                    commands.push(Vec::new());
                }
            }
            _ => {
                in_word = true;
                word.push(character);
            }
        }
    }
    commands.retain(|command| command.first().is_some_and(|program| program == "weir"));
    commands
}

#[test]
fn commands_are_found_in_a_line_of_shell() {
    let line = r#"  for n in 1; do echo '{"a|b": 1}'; done | weir submit - --timeout "5 s" > out.jsonl & weir demo"#;
    let expected = [vec!["weir", "submit", "-", "--timeout", "5 s"], vec!["weir", "demo"]];
    assert_eq!(weir_commands(line), expected);
    assert!(weir_commands("systemctl start weir-worker").is_empty());
}
