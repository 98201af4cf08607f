//! The house rules that a compiler does not know: who may import whom, and how large a file may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The floors from the ground up; on the ground, each module may import only those before it.
const GROUND: &[&str] = &["task", "causes", "pem", "quantile", "limits", "lifecycle", "telemetry", "redis", "wire"];
const ORGANS: &[&str] = &["gate", "overload", "upstream", "integration", "payload", "registry", "settings", "admin"];
const ROLES: &[&str] = &["worker", "router", "sandbox"];
const ENTRY: &[&str] = &["cli", "client", "replay", "config"];

/// Lines a file may have, tests included.
const MAX_LINES: usize = 500;

/// Foreign crates that only the files named for them may use, by a part of the path.
const AT_HOME: &[(&str, &[&str])] = &[
    ("redis", &["redis", "registry/redis", "settings/redis"]),
    ("datalogic_rs", &["settings/targeting.rs"]),
    ("aws_", &["payload/store/s3"]),
    ("http_body", &["payload/store/s3"]),
    ("xxhash_rust", &["router/split.rs"]),
    ("zstd", &["payload/encode.rs", "payload/decode.rs"]),
    ("hyper_rustls", &["integration/transport", "settings/launchdarkly"]),
    ("rustls_platform_verifier", &["integration/transport", "settings/launchdarkly"]),
    ("launchdarkly_server_sdk", &["settings/launchdarkly"]),
    ("launchdarkly_sdk_transport", &["settings/launchdarkly"]),
    ("minijinja", &["integration/http"]),
    ("tonic", &["wire", "worker/service.rs", "router/service.rs", "router/channels.rs", "router/retry.rs", "client"]),
    ("axum", &["admin", "sandbox"]),
    ("tokio_rustls", &["sandbox"]),
    ("webpki", &["sandbox/tls.rs"]),
    ("toml", &["sandbox/script.rs"]),
    ("clap", &["cli", "main.rs"]),
    ("clap_complete", &["cli/completion.rs"]),
    ("console", &["cli"]),
    ("anyhow", &["cli", "main.rs"]),
    ("indicatif", &["cli"]),
    ("tikv_jemalloc", &["telemetry/allocator.rs", "telemetry/profile/heap.rs", "overload/relief.rs", "main.rs"]),
    ("pprof", &["telemetry/profile"]),
    ("backtrace", &["telemetry/profile/heap.rs"]),
    ("tracing_subscriber", &["telemetry/logs"]),
    ("metrics_exporter_prometheus", &["telemetry.rs"]),
];

struct Source {
    /// Below `src`, such as `worker/service.rs`.
    path: String,
    text: String,
}

impl Source {
    /// The module of the crate's root that it belongs to.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The code, without comments; tests, in a file of their own or at the end of one, may import what they like.
    fn code(&self) -> impl Iterator<Item = &str> {
        let tests = self.text.find("#[cfg(test)]\nmod tests").unwrap_or(self.text.len());
        let tests = if self.is_test() { 0 } else { tests };
        self.text[..tests].lines().map(str::trim).filter(|line| !line.starts_with("//"))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 30, "the sources are where they should be");
    let source = |file: PathBuf| Source {
        path: file.strip_prefix(&root).expect("below src").to_string_lossy().into_owned(),
        text: std::fs::read_to_string(&file).expect("readable"),
    };
    files.into_iter().map(source).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// What each module may import from the crate's root, itself apart.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut allowed = BTreeMap::new();
    for (index, module) in GROUND.iter().enumerate() {
        allowed.insert(*module, GROUND[..index].to_vec());
    }
    let below_organs = GROUND.to_vec();
    let below_roles = [GROUND, ORGANS].concat();
    allowed.extend(ORGANS.iter().map(|module| (*module, below_organs.clone())));
    allowed.extend(ROLES.iter().map(|module| (*module, below_roles.clone())));
    allowed.extend(ENTRY.iter().map(|module| (*module, [GROUND, ORGANS, ROLES, ENTRY].concat())));
    allowed
}

/// The root modules that a line names: `crate::gate::…`, or each of `crate::{gate, task::Task}`.
fn imported(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let heads = match rest.strip_prefix('{') {
            Some(list) => top_level(list),
            None => vec![rest],
        };
        let head = |text: &str| text.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned);
        names.extend(heads.into_iter().filter_map(head).filter(|name| !name.is_empty()));
    }
    names
}

/// The items of a brace list, nested lists not split.
fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&list[start..at]);
                return items;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    items
}

#[test]
fn each_floor_imports_only_from_below() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        if matches!(module, "lib" | "main") {
            continue;
        }
        let may = allowed.get(module).unwrap_or_else(|| panic!("{}: give the module {module} a floor", source.path));
        let code: String = source.code().collect::<Vec<_>>().join(" ");
        for name in imported(&code) {
            if name != module && allowed.contains_key(name.as_str()) && !may.contains(&name.as_str()) {
                wrong.push(format!("{} imports {name}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_library_lists_its_modules_floor_by_floor() {
    let library = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs");
    let listed: Vec<_> = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let floor = |module: &&str| [ENTRY, ROLES, ORGANS, GROUND].iter().position(|floor| floor.contains(module));
    let floors: Vec<_> = listed.iter().map(floor).collect();
    assert!(floors.iter().all(Option::is_some) && floors.is_sorted(), "{listed:?}");
    let ground: Vec<_> = listed.into_iter().filter(|module| GROUND.contains(module)).collect();
    assert_eq!(ground, GROUND);
}

#[test]
fn foreign_crates_stay_in_the_files_named_for_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, homes) in AT_HOME {
            let uses = |line: &str| {
                let used = format!("{name}{}", if name.ends_with('_') { "" } else { "::" });
                line.match_indices(&used).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|before| !before.is_alphanumeric() && before != '_' && before != ':')
                })
            };
            if !homes.iter().any(|home| source.path.starts_with(home)) && source.code().any(uses) {
                wrong.push(format!("{} uses {name}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_file_says_what_it_is_and_stays_small() {
    let mut wrong = Vec::new();
    for source in sources() {
        if !source.is_test() && !source.text.starts_with("//!") {
            wrong.push(format!("{} does not open with //!", source.path));
        }
        let lines = source.text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{} has {lines} lines", source.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whoever holds a borrow of a watched value stands in the way of whoever publishes the next one, perhaps under a lock that
/// is asked for next. So each is the whole of a statement, which binds a value.
#[test]
fn a_borrow_of_a_watched_value_ends_with_its_line() {
    let borrows = |line: &&str| line.contains(".borrow()") || line.contains(".borrow_and_update()");
    let is_short = |line: &str| {
        let binds_a_value = line.contains("= *") || !(line.contains("= &") || line.ends_with("borrow();"));
        line.starts_with("let ") && line.ends_with(';') && binds_a_value && !line.ends_with("borrow_and_update();")
    };
    assert!(is_short("let limits = settings.borrow().limits();") && is_short("let pressure = *pressure.borrow();"));
    assert!(
        ["match *it.borrow() {", "let held = it.borrow();", "let part = &it.borrow().part;", "full: it.borrow().full,"]
            .iter()
            .all(|line| !is_short(line))
    );
    let sources = sources();
    let held = |source: &Source| {
        let lines: Vec<_> = source.code().filter(borrows).filter(|line| !is_short(line)).collect();
        lines.into_iter().map(|line| format!("{}: {line}", source.path)).collect::<Vec<_>>()
    };
    let wrong: Vec<_> = sources.iter().flat_map(held).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_spawned_outside_lifecycle() {
    let spawns = ["tokio::spawn(", "task::spawn(", "thread::spawn(", "spawn_blocking("];
    let wrong: Vec<_> = sources()
        .iter()
        .filter(|source| source.path != "lifecycle.rs")
        .filter(|source| source.code().any(|line| spawns.iter().any(|spawn| line.contains(spawn))))
        .map(|source| source.path.clone())
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
