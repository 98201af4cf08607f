//! The last good settings on disk: what a worker starts with until its source answers.
//!
//! They are the values, not the document: some may be older than the document that was read last, because that had bad
//! ones. They count only for the source that they are from.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::file::write_file;
use super::{Settings, TABLE, spec};

/// The file that they are in.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    path: PathBuf,
    source: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    source: String,
    version: String,
    values: Map<String, Value>,
}

/// The values in such a file, whatever its source.
pub fn values(path: &Path) -> Result<Vec<(String, Value)>, String> {
    let note = read(path)?.ok_or_else(|| format!("{} is not there", path.display()))?;
    // An older or a newer weir may have written it.
    Ok(note.values.into_iter().filter(|(key, _)| spec(key).is_some()).collect())
}

/// None where there is no file.
fn read(path: &Path) -> Result<Option<Note>, String> {
    let shown = path.display();
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{shown} cannot be read: {error}")),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| format!("{shown} is damaged: {error}"))
}

impl Kept {
    pub(super) fn new(path: &Path, source: String) -> Self {
        Kept { path: path.to_owned(), source }
    }

    /// The last good settings over the start values; none where there are none of this source.
    pub(super) fn load(&self, start: &Settings) -> Result<Option<Settings>, String> {
        let Some(note) = read(&self.path)?.filter(|note| note.source == self.source) else { return Ok(None) };
        let mut settings = Settings { version: note.version, ..start.clone() };
        for (key, value) in &note.values {
            // An older or a newer weir may have written it.
            if let Some(Err(reason)) = spec(key).map(|spec| spec.write(&mut settings, value)) {
                return Err(format!("{} has {key} = {value}: {reason}", self.path.display()));
            }
        }
        Ok(Some(settings))
    }

    pub(super) fn save(&self, settings: &Settings) -> io::Result<()> {
        let values = TABLE.iter().map(|spec| (spec.key.to_owned(), spec.value(settings))).collect();
        let note = Note { source: self.source.clone(), version: settings.version.clone(), values };
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        write_file(&self.path, &format!("{}\n", serde_json::to_string(&note)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Config;

    #[test]
    fn what_was_kept_comes_back_for_its_source_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state/settings.json");
        let (start, kept) = (Config::default().start(), Kept::new(&path, "file a".into()));
        assert_eq!(kept.load(&start), Ok(None));
        let settings = Settings { max_parallelism: 7, version: "v1".into(), ..start.clone() };
        kept.save(&settings).expect("written");
        assert_eq!(kept.load(&start), Ok(Some(settings)));
        assert_eq!(Kept::new(&path, "file b".into()).load(&start), Ok(None));
    }

    #[test]
    fn what_is_damaged_or_out_of_range_is_not_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        let (start, kept) = (Config::default().start(), Kept::new(&path, "a".into()));
        for (text, why) in [
            ("", "is damaged"),
            (
                r#"{"source": "a", "version": "v", "values": {"max_parallelism": -1}}"#,
                "use an integer from 0 to 100000",
            ),
        ] {
            std::fs::write(&path, text).expect("written");
            let reason = kept.load(&start).expect_err(why);
            assert!(reason.contains(why), "{reason}");
        }
    }
}
