//! The settings as the help of `weir settings` lists them: from the one table, like the documentation.

use super::super::table::Table;
use crate::settings::TABLE;

/// Help that ends with these examples, after the list of all settings.
pub(super) fn with_settings(examples: &str) -> String {
    let mut table = Table::new(&["SETTING", "TYPE", "RANGE", "DEFAULT"]);
    for spec in TABLE {
        table.row([spec.key.into(), spec.type_name().into(), spec.range(), spec.default().to_string()]);
    }
    format!("Settings (what each affects: docs/settings.md):\n  {}\n\n{examples}", table.lines().join("\n  "))
}
