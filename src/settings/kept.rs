//! The last good settings on disk: what a worker starts with until its source answers.
//!
//! They are the values: some may be older than the document that was read last, because that had bad ones. Which those are
//! lies beside them, so that the next start says so too, before its source answers. They count only for the source that they
//! are from. The document lies there as well, so that somebody can put it back into a source that has lost it; no worker
//! does so by itself, for it may have been removed on purpose.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::file::write_file;
use super::store::version_of;
use super::{Rejected, Settings, TABLE, spec};

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejected>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document: Option<String>,
}

/// What a worker keeps, whatever its source.
#[derive(Debug, Clone, PartialEq)]
pub struct Last {
    /// The source that it is from.
    pub source: String,
    /// Names the document that it is from.
    pub version: String,
    /// That document; none where an older weir kept it, or LaunchDarkly has it.
    pub document: Option<String>,
    /// The values.
    pub values: Vec<(String, Value)>,
}

/// Reads such a file.
pub fn read(path: &Path) -> Result<Last, String> {
    let note = note(path)?.ok_or_else(|| format!("{} is not there", path.display()))?;
    // An older or a newer weir may have written it.
    let values = note.values.into_iter().filter(|(key, _)| spec(key).is_some()).collect();
    Ok(Last { source: note.source, version: note.version, document: note.document, values })
}

/// None where there is no file.
fn note(path: &Path) -> Result<Option<Note>, String> {
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

    /// The last good settings over the start values, and what of their document was rejected; none where there are none of
    /// this source.
    pub(super) fn load(&self, start: &Settings) -> Result<Option<(Settings, Option<Rejected>)>, String> {
        let Some(note) = note(&self.path)?.filter(|note| note.source == self.source) else { return Ok(None) };
        let mut settings = Settings { version: note.version, ..start.clone() };
        for (key, value) in &note.values {
            // An older or a newer weir may have written it.
            if let Some(Err(reason)) = spec(key).map(|spec| spec.write(&mut settings, value)) {
                return Err(format!("{} has {key} = {value}: {reason}", self.path.display()));
            }
        }
        Ok(Some((settings, note.rejected)))
    }

    /// Saves the settings, and of the document that they are from what was rejected, and itself.
    pub(super) fn save(
        &self,
        settings: &Settings,
        rejected: Option<&Rejected>,
        document: Option<&[u8]>,
    ) -> io::Result<()> {
        let values = TABLE.iter().map(|spec| (spec.key.to_owned(), spec.value(settings))).collect();
        let document = document.filter(|document| version_of(document) == settings.version);
        let document = document.and_then(|document| String::from_utf8(document.to_vec()).ok());
        let rejected = rejected.filter(|rejected| rejected.version == settings.version).cloned();
        let note = Note { source: self.source.clone(), version: settings.version.clone(), values, rejected, document };
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
        kept.save(&settings, None, None).expect("written");
        assert_eq!(kept.load(&start), Ok(Some((settings, None))));
        assert_eq!(Kept::new(&path, "file b".into()).load(&start), Ok(None));
    }

    #[test]
    fn the_document_of_the_settings_is_kept_and_no_other_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        let kept = Kept::new(&path, "redis".into());
        let document = r#"{"flags": {}}"#;
        let version = version_of(document.as_bytes());
        let settings = Settings { version: version.clone(), ..Config::default().start() };
        kept.save(&settings, None, Some(document.as_bytes())).expect("written");
        assert_eq!(read(&path).expect("readable").document.as_deref(), Some(document));
        kept.save(&settings, None, Some(b"another one")).expect("written");
        let last = read(&path).expect("readable");
        assert_eq!((last.document, last.version), (None, version));
    }

    #[test]
    fn what_was_rejected_is_kept_with_the_settings_of_its_document_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        let (start, kept) = (Config::default().start(), Kept::new(&path, "redis".into()));
        let settings = Settings { version: "v2".into(), ..start.clone() };
        let rejected = |version: &str| Rejected::whole(version, "it is a test".into());
        kept.save(&settings, Some(&rejected("v2")), None).expect("written");
        assert_eq!(kept.load(&start), Ok(Some((settings.clone(), Some(rejected("v2"))))));
        kept.save(&settings, Some(&rejected("v3")), None).expect("written");
        assert_eq!(kept.load(&start), Ok(Some((settings, None))));
        let older = r#"{"source": "redis", "version": "v1", "values": {}}"#;
        std::fs::write(&path, older).expect("written");
        assert_eq!(kept.load(&start), Ok(Some((Settings { version: "v1".into(), ..start.clone() }, None))));
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
