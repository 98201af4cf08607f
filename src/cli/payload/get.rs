//! `weir payload get`: one payload, for people and for programs.

use std::process::ExitCode;

use super::super::print;
use super::load;
use crate::config::{Config, ConfigError};

/// Flags of `weir payload get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir payload get ./t1.0192….json.zlib.b64 | jq .outcome
  weir payload get payloads/7/2026/11/22/17/bank/ok/t1.0192….json.zlib.b64")]
pub(super) struct Args {
    /// A file, or else a key in the configured store.
    #[arg(value_name = "KEY|FILE")]
    which: String,
    /// Prints the text as it was stored, instead of indented.
    #[arg(long)]
    raw: bool,
}

pub(super) fn run(args: &Args, config: impl Fn() -> Result<Config, ConfigError>) -> anyhow::Result<ExitCode> {
    let payload = load(&args.which, config)?;
    print(&if args.raw { payload.json } else { indented(&payload.json) })
}

/// The same JSON text with line breaks and indentation. Token by token, for a payload holds what a bank answered, and
/// that may be JSON that no tree can hold: numbers without bounds, lists without depth.
fn indented(json: &str) -> String {
    const MAX_INDENTED_LEVELS: usize = 100;
    let mut text = String::with_capacity(json.len() * 2);
    let (mut level, mut in_string, mut escaped) = (0usize, false, false);
    let break_line = |text: &mut String, level: usize| {
        text.push('\n');
        text.extend(std::iter::repeat_n("  ", level.min(MAX_INDENTED_LEVELS)));
    };
    let mut characters = json.chars().peekable();
    while let Some(character) = characters.next() {
        if in_string {
            text.push(character);
            (in_string, escaped) = (escaped || character != '"', !escaped && character == '\\');
            continue;
        }
        match character {
            ' ' | '\t' | '\r' | '\n' => {}
            '{' | '[' => {
                text.push(character);
                while characters.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                if let Some(end) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    text.push(end);
                } else {
                    level += 1;
                    break_line(&mut text, level);
                }
            }
            '}' | ']' => {
                level = level.saturating_sub(1);
                break_line(&mut text, level);
                text.push(character);
            }
            ',' => {
                text.push(character);
                break_line(&mut text, level);
            }
            ':' => text.push_str(": "),
            _ => {
                in_string = character == '"';
                text.push(character);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_indents_as_others_do_and_changes_no_value() {
        let json = r#"{"a":[1,2.50,{"b":"x, \"{y}\": [z] \\"}],"c":{},"d":[],"e":"\u00e9é","f":null}"#;
        let value: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let expected =
            serde_json::to_string_pretty(&value).expect("JSON").replace("2.5", "2.50").replace("\"éé", "\"\\u00e9é");
        assert_eq!(indented(json), expected);
        assert_eq!(indented(&indented(json)), expected);
    }

    #[test]
    fn what_no_tree_can_hold_is_printed_too() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(indented(&deep).split_whitespace().collect::<String>(), deep);
        assert_eq!(indented("[1e400]"), "[\n  1e400\n]");
    }
}
