//! Whether the directories that a worker writes into can take files, as far as that shows without making any.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

use super::Report;
use crate::config::Config;
use crate::payload::store;

/// What a worker would keep on this machine, and could not.
pub(super) fn check(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    let kept = config.payloads.store != store::Kind::None;
    let is_directory = config.payloads.store == store::Kind::Directory;
    let places = [
        ("worker.state_dir", config.worker.state_dir.as_deref()),
        ("payloads.spool.path", config.payloads.spool.path.as_deref().filter(|_| kept)),
        ("payloads.directory.path", Some(config.payloads.directory.path.as_path()).filter(|_| is_directory)),
    ];
    for (key, place) in places.into_iter().filter_map(|(key, place)| Some((key, place?))) {
        if let Err(reason) = takes_files(place)
            && !report.is_wrong(key)
        {
            report.wrong(key, format!("{}: {reason}", place.display()))?;
        }
    }
    if config.payloads.store == store::Kind::S3
        && let Err(error) = config.payloads.s3.check_certificates()
        && !report.is_wrong("payloads.s3.ca_file")
    {
        report.wrong("payloads.s3.ca_file", error.what())?;
    }
    Ok(())
}

/// Whether files could be made in a directory. One that is not there would be made in the nearest above it that is.
fn takes_files(directory: &Path) -> Result<(), String> {
    let here = if directory.is_absolute() { Path::new("/") } else { Path::new(".") };
    let parts = directory.ancestors().filter(|part| !part.as_os_str().is_empty()).chain([here]);
    for part in parts {
        let shown = part.display();
        match part.metadata() {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(format!("{shown} is a file: name a directory, which is made where it is missing"));
            }
            Ok(_) => {
                let writable = access(part, Access::WRITE_OK | Access::EXEC_OK);
                return writable.map_err(|error| format!("{shown} takes no files: {}", io::Error::from(error)));
            }
            // A file on the way is what the next look finds.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(format!("{shown} cannot be looked at: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_takes_files_where_it_is_or_could_be_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert_eq!(takes_files(directory.path()), Ok(()));
        assert_eq!(takes_files(&directory.path().join("a/b")), Ok(()));
        assert!(!directory.path().join("a").exists(), "nothing is made");
        for place in [file.clone(), file.join("spool")] {
            let reason = takes_files(&place).expect_err("a file is in its place");
            assert!(reason.starts_with(&format!("{} is a file", file.display())), "{reason}");
        }
        // To the superuser all directories are open.
        if !rustix::process::geteuid().is_root() {
            std::fs::set_permissions(directory.path(), Permissions::from_mode(0o500)).expect("it is ours");
            let reason = takes_files(&directory.path().join("spool")).expect_err("it is read-only");
            assert!(reason.ends_with(" takes no files: Permission denied (os error 13)"), "{reason}");
        }
    }
}
