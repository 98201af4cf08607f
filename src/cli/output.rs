//! Where a result goes: standard output, or a file that appears whole or not at all.

use std::convert::Infallible;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use tempfile::NamedTempFile;

use super::print_bytes;

/// Names standard input, or standard output.
pub(super) const STANDARD_STREAM: &str = "-";

/// `-`, or a file.
#[derive(Debug, Clone)]
pub(super) enum Output {
    /// Standard output.
    Standard,
    /// A file.
    File(PathBuf),
}

impl FromStr for Output {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            STANDARD_STREAM => Output::Standard,
            path => Output::File(path.into()),
        })
    }
}

impl Display for Output {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Output::Standard => out.write_str("standard output"),
            Output::File(path) => path.display().fmt(out),
        }
    }
}

impl Output {
    /// Whether both are one, by whatever names; a device can take several texts.
    pub(super) fn is(&self, other: &Output) -> bool {
        match (self, other) {
            (Output::Standard, Output::Standard) => true,
            (Output::File(one), Output::File(other)) => {
                let is_device = fs::metadata(one).is_ok_and(|metadata| !metadata.is_file());
                !is_device && real(one) == real(other)
            }
            _ => false,
        }
    }

    /// Writes a text and a line break. A file that exists is only replaced by `force`.
    pub(super) fn write(&self, text: &str, force: bool) -> anyhow::Result<()> {
        self.write_bytes(format!("{text}\n").as_bytes(), force)
    }

    /// Writes bytes as they are.
    pub(super) fn write_bytes(&self, bytes: &[u8], force: bool) -> anyhow::Result<()> {
        match self {
            Output::Standard => print_bytes(bytes).map(drop),
            Output::File(path) => write_file(path, bytes, force),
        }
    }

    /// Fails early where writing is sure to fail.
    pub(super) fn check(&self, force: bool) -> anyhow::Result<()> {
        match self {
            Output::File(path) if !parent(path).is_dir() => {
                bail!("cannot write {}: there is no directory {}", path.display(), parent(path).display())
            }
            Output::File(path) => {
                check_file(path, force)?;
                // What takes minutes to make must not come to nothing at the end.
                let is_new_or_replaced = fs::metadata(path).map_or(true, |metadata| metadata.is_file());
                if is_new_or_replaced {
                    NamedTempFile::new_in(parent(path)).with_context(|| format!("cannot write {}", path.display()))?;
                }
                Ok(())
            }
            Output::Standard => Ok(()),
        }
    }
}

/// The path without links and detours, be the file there or not.
fn real(path: &Path) -> PathBuf {
    let beside = || Some(fs::canonicalize(parent(path)).ok()?.join(path.file_name()?));
    fs::canonicalize(path).ok().or_else(beside).unwrap_or_else(|| path.to_owned())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check_file(path: &Path, force: bool) -> anyhow::Result<()> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => bail!("cannot write {shown}: it is a directory; name a file in it"),
        Ok(metadata) if metadata.is_file() && !force => bail!("{shown} exists already; --force replaces it"),
        _ => Ok(()),
    }
}

fn write_file(path: &Path, bytes: &[u8], force: bool) -> anyhow::Result<()> {
    let shown = path.display();
    let failed = || format!("cannot write {shown}");
    check_file(path, force)?;
    // A pipe or a device is written to, and never replaced.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let mut device = OpenOptions::new().write(true).open(path).with_context(failed)?;
        return device.write_all(bytes).with_context(failed);
    }
    let mut file = NamedTempFile::new_in(parent(path)).with_context(failed)?;
    file.write_all(bytes).with_context(failed)?;
    let put = if force { file.persist(path) } else { file.persist_noclobber(path) };
    match put {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => bail!("{shown} exists already"),
        put => put.map(drop).map_err(|error| error.error).with_context(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_and_replaced_only_by_force() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("t.har");
        let written = || fs::read_to_string(&path).expect("readable");
        write_file(&path, b"one\n", false).expect("writes");
        let error = write_file(&path, b"two\n", false).expect_err("it is there").to_string();
        assert!(error.ends_with("t.har exists already; --force replaces it"), "{error}");
        assert_eq!(written(), "one\n");
        write_file(&path, b"two\n", true).expect("writes");
        assert_eq!(written(), "two\n");
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1, "nothing else is left");
    }

    #[test]
    fn one_file_is_one_by_whatever_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str| Output::File(directory.path().join(name));
        assert!(file("new").is(&file("./new")) && !file("new").is(&file("newer")));
        fs::write(directory.path().join("old"), "x").expect("writes");
        std::os::unix::fs::symlink("old", directory.path().join("link")).expect("a link");
        assert!(file("old").is(&file("link")) && file("no/x").is(&file("no/x")));
        let null = || Output::File("/dev/null".into());
        assert!(!null().is(&null()) && Output::Standard.is(&Output::Standard) && !null().is(&Output::Standard));
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_named_before_there_is_anything_to_write() {
        // Nobody makes a file there, whoever they are.
        let error = Output::File("/proc/self/t.har".into()).check(false).expect_err("no place for files");
        assert_eq!(error.to_string(), "cannot write /proc/self/t.har");
        let directory = tempfile::tempdir().expect("a directory");
        Output::File(directory.path().join("t.har")).check(false).expect("it can be written");
        Output::File("/dev/null".into()).check(false).expect("a device");
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0, "nothing is left");
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        for force in [false, true] {
            let error = write_file(directory.path(), b"x", force).expect_err("a directory").to_string();
            assert!(error.ends_with("it is a directory; name a file in it"), "{error}");
            write_file(Path::new("/dev/null"), b"x", force).expect("writes");
            let missing = write_file(&directory.path().join("no/t.har"), b"x", force).expect_err("no folder");
            assert!(missing.to_string().ends_with("no/t.har"), "{missing}");
        }
        assert!(!fs::metadata("/dev/null").expect("it is still there").is_file());
    }
}
