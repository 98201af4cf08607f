//! Payloads as files below one directory, the key being the path.
//!
//! A file appears whole or not at all: it is written under a temporary name beside its place and renamed. A stop in the
//! middle may leave a hidden `.tmp` file, and never half a payload. The metadata is not kept; the file says all of it. Files
//! and the directories that are made for them are for the worker's user alone, as in the spool.

use std::collections::BinaryHeap;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use super::super::ConfigError;
use super::super::body::Body;
use super::{Listed, Object, Page, Store, StoreError, Stored, check_key};

/// Where the files go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory; made when it is not there.
    pub path: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Config { path: "payloads".into() }
    }
}

impl Config {
    pub(in super::super) fn check(&self) -> Result<(), ConfigError> {
        match self.path.as_os_str().is_empty() {
            true => Err(ConfigError::new("directory.path", "empty", "name a directory, such as \"./payloads\"")),
            false => Ok(()),
        }
    }
}

/// A directory of payloads.
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Touches nothing until the first payload.
    pub fn new(config: &Config) -> Self {
        Directory { root: config.path.clone() }
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        check_key(key)?;
        Ok(self.root.join(key))
    }
}

#[async_trait]
impl Store for Directory {
    async fn put(&self, object: &Object) -> Result<(), StoreError> {
        let path = self.path(&object.key)?;
        write(&path, &object.body).await.map_err(|error| failed("store", &path, &error))
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> Result<Stored, StoreError> {
        let path = self.path(key)?;
        let location = || path.display().to_string();
        let body = read(&path, limit_bytes).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
                StoreError::NotFound { location: location() }
            }
            io::ErrorKind::FileTooLarge => StoreError::TooLarge { location: location(), limit_bytes },
            _ => failed("read", &path, &error),
        })?;
        Ok(Stored { body: body.into() })
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Page, StoreError> {
        let wanted = Wanted { prefix, start_after, limit };
        wanted.collect(&self.root).await.map_err(|error| failed("list", &self.root.join(prefix), &error))
    }

    fn location(&self, key: &str) -> String {
        self.root.join(key).display().to_string()
    }
}

async fn write(path: &Path, body: &Body) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = directory.join(format!(".{}.tmp", Uuid::now_v7()));
    tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).await?;
    let written = match write_chunks(&temporary, body).await {
        Ok(()) => tokio::fs::rename(&temporary, path).await,
        Err(error) => Err(error),
    };
    if written.is_err() {
        let _ = tokio::fs::remove_file(&temporary).await;
    }
    written
}

async fn write_chunks(path: &Path, body: &Body) -> io::Result<()> {
    let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await?;
    for chunk in body.chunks() {
        file.write_all(chunk).await?;
    }
    // A tokio file reports the last write's error only here.
    file.flush().await
}

/// What a list asks for.
struct Wanted<'w> {
    prefix: &'w str,
    start_after: &'w str,
    limit: usize,
}

/// What is to be looked at, and by which key it is ordered: a directory's ends with a slash.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    key: String,
    is_directory: bool,
}

impl Wanted<'_> {
    /// Walks the tree in the order of the keys, and only where it may be wanted: a list of one page reads a few
    /// directories, however many there are.
    async fn collect(&self, root: &Path) -> io::Result<Page> {
        let mut page = Page::default();
        let mut places = vec![Place { key: String::new(), is_directory: true }];
        while let Some(place) = places.pop() {
            if place.is_directory {
                places.extend(self.places_in(root, &place.key).await?);
            } else if page.payloads.len() == self.limit {
                page.has_more = true;
                break;
            } else if let Ok(metadata) = tokio::fs::symlink_metadata(root.join(&place.key)).await {
                page.payloads.push(Listed { key: place.key, bytes: metadata.len() });
            }
        }
        Ok(page)
    }

    /// The places in a directory that may be wanted, the last first. Of its files, no more than a page has room for and
    /// one, which tells that there are more.
    async fn places_in(&self, root: &Path, directory: &str) -> io::Result<Vec<Place>> {
        let (mut directories, mut files) = (Vec::new(), BinaryHeap::new());
        let mut entries = match tokio::fs::read_dir(root.join(directory)).await {
            Ok(entries) => entries,
            // It was never made, or has gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(directories),
            Err(error) => return Err(error),
        };
        while let Some(entry) = entries.next_entry().await? {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let Ok(kind) = entry.file_type().await else { continue };
            let is_directory = kind.is_dir();
            let key = format!("{directory}{name}{}", if is_directory { "/" } else { "" });
            if is_directory && self.may_be_in(&key) {
                directories.push(Place { key, is_directory });
            } else if !is_directory && self.is_wanted(&key) {
                files.push(Place { key, is_directory });
                if files.len() > self.limit + 1 {
                    // The one that comes last.
                    files.pop();
                }
            }
        }
        let mut places = directories;
        places.extend(files);
        places.sort_unstable_by(|one, other| other.cmp(one));
        Ok(places)
    }

    fn is_wanted(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && key > self.start_after
    }

    /// Whether a key that begins with that of the directory can be wanted.
    fn may_be_in(&self, directory: &str) -> bool {
        let on_the_way = directory.starts_with(self.prefix) || self.prefix.starts_with(directory);
        on_the_way && (directory > self.start_after || self.start_after.starts_with(directory))
    }
}

/// What does not fit is not read.
async fn read(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    // To open a FIFO would wait for whoever writes to it.
    match tokio::fs::metadata(path).await?.file_type() {
        kind if kind.is_file() => {}
        kind if kind.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        _ => return Err(io::Error::other("it is no regular file")),
    }
    let file = tokio::fs::File::open(path).await?;
    let fits = |bytes: u64| if bytes <= limit_bytes { Ok(()) } else { Err(io::ErrorKind::FileTooLarge) };
    fits(file.metadata().await?.len())?;
    // It may grow meanwhile: one byte more tells.
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut body).await?;
    fits(body.len() as u64)?;
    Ok(body)
}

fn failed(action: &'static str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed { action, location: path.display().to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn object(key: &str) -> Object {
        Object { key: key.into(), body: "body".into(), media_type: "text/plain".into(), metadata: Vec::new() }
    }

    #[tokio::test]
    async fn what_is_put_is_there_whole_and_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Directory::new(&Config { path: root.path().join("made") });
        store.put(&object("a/b/c.b64")).await.expect("stores");
        store.put(&object("a/b/c.b64")).await.expect("stores again");
        assert_eq!(store.get("a/b/c.b64", 4).await.expect("reads").body, "body");
        assert_eq!(std::fs::read_dir(root.path().join("made/a/b")).expect("a directory").count(), 1);
        assert!(store.location("a/b/c.b64").ends_with("made/a/b/c.b64"));
    }

    #[tokio::test]
    async fn what_is_stored_is_for_its_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a directory");
        let store = Directory::new(&Config { path: root.path().join("made") });
        store.put(&object("a/b.b64")).await.expect("stores");
        let mode = |path: &str| std::fs::metadata(root.path().join(path)).expect("it is there").permissions().mode();
        for (path, expected) in [("made", 0o700), ("made/a", 0o700), ("made/a/b.b64", 0o600)] {
            assert_eq!(mode(path) & 0o777, expected, "{path}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_or_stored_is_named() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Directory::new(&Config { path: root.path().into() });
        store.put(&object("big")).await.expect("stores");
        assert!(matches!(store.get("big", 3).await, Err(StoreError::TooLarge { .. })));
        assert!(matches!(store.get("absent", 3).await, Err(StoreError::NotFound { .. })));
        let error = store.put(&object("big/below")).await.expect_err("a file is in the way").to_string();
        assert!(error.starts_with("could not store ") && error.contains("big/below: "), "{error}");
        for key in ["/etc/passwd", "a/../../b", "..", "", "a//b", "a/./b"] {
            assert!(matches!(store.put(&object(key)).await, Err(StoreError::InvalidKey { .. })), "{key}");
            assert!(matches!(store.get(key, 1).await, Err(StoreError::InvalidKey { .. })), "{key}");
        }
    }

    #[tokio::test]
    async fn what_is_no_file_is_not_waited_for() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Directory::new(&Config { path: root.path().into() });
        let path = root.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("made");
        let error = store.get("fifo", 3).await.expect_err("nobody writes to it").to_string();
        assert!(error.ends_with("fifo: it is no regular file"), "{error}");
        std::fs::create_dir(root.path().join("directory")).expect("made");
        assert!(matches!(store.get("directory", 3).await, Err(StoreError::NotFound { .. })));
    }

    /// The keys of all pages of that size.
    async fn keys(store: &Directory, prefix: &str, start_after: &str, limit: usize) -> Vec<String> {
        let (mut keys, mut after) = (Vec::new(), start_after.to_owned());
        loop {
            let page = store.list(prefix, &after, limit).await.expect("lists");
            assert!(page.payloads.len() <= limit && page.payloads.iter().all(|listed| listed.bytes == 4));
            keys.extend(page.payloads.into_iter().map(|listed| listed.key));
            match keys.last() {
                Some(last) if page.has_more => after.clone_from(last),
                _ => return keys,
            }
        }
    }

    #[tokio::test]
    async fn lists_are_ordered_as_in_s3_and_come_in_pages() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Directory::new(&Config { path: root.path().join("p") });
        assert_eq!(store.list("", "", 10).await.expect("not made yet"), Page::default());
        // A slash comes after a full stop and before a letter.
        let all = ["a.b", "a/b/1", "a/b/2", "a/c", "aa/1", "b"];
        for key in all {
            store.put(&object(key)).await.expect("stores");
        }
        std::fs::write(root.path().join("p/a/.x.tmp"), "unfinished").expect("written");
        for limit in 1..=7 {
            assert_eq!(keys(&store, "", "", limit).await, all);
            assert_eq!(keys(&store, "a/", "", limit).await, all[1..4]);
            assert_eq!(keys(&store, "a/b", "a/b/1", limit).await, all[2..3]);
            assert_eq!(keys(&store, "", "a/b/17", limit).await, all[2..]);
            assert_eq!(keys(&store, "c", "", limit).await, Vec::<String>::new());
        }
        let page = store.list("", "", 6).await.expect("lists");
        assert_eq!((page.payloads.len(), page.has_more), (6, false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_list_is_what_a_sorted_list_of_all_keys_says(
            keys in proptest::collection::btree_set("[ab.]{1,2}(/[ab.-]{1,2}){0,2}", 0..12),
            prefix in "[ab/]{0,3}", start_after in "[ab./-]{0,5}", limit in 1usize..5,
        ) {
            let hidden = |key: &String| key.split('/').any(|segment| segment.starts_with('.'));
            let in_the_way = |key: &String| keys.iter().any(|other| other.starts_with(&format!("{key}/")));
            let all: BTreeSet<String> = keys.iter().filter(|key| !hidden(key) && !in_the_way(key)).cloned().collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let root = tempfile::tempdir().expect("a directory");
                let store = Directory::new(&Config { path: root.path().into() });
                for key in &all {
                    store.put(&object(key)).await.expect("stores");
                }
                let wanted = |key: &&String| key.starts_with(&prefix) && **key > start_after;
                let expected: Vec<_> = all.iter().filter(wanted).cloned().collect();
                assert_eq!(super::tests::keys(&store, &prefix, &start_after, limit).await, expected);
            });
        }
    }
}
