//! Whether a command can be started at all, looked at before its first start: a mistake in its name is then one of the
//! configuration, and not of every task.

use std::env::split_paths;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::integration::Invalid;

/// Where a program is looked for that gets no `PATH`: as execvp does it.
const PATH_WITHOUT_ONE: &str = "/bin:/usr/bin";

/// Looks for `program` as its start will: by `path`, the PATH that the program itself will have, and in `directory`,
/// where it will run.
pub(super) fn check(program: &str, path: Option<&str>, directory: Option<&Path>) -> Result<(), Invalid> {
    // A relative directory of PATH, too, is one of where it will run.
    let beside = |file: &Path| directory.map_or_else(|| file.to_owned(), |directory| directory.join(file));
    if program.contains('/') {
        let file = beside(Path::new(program));
        return match (file.is_file(), is_executable(&file)) {
            (true, true) => Ok(()),
            (true, false) => Err(invalid(format!("{} is not executable: chmod +x it", file.display()))),
            (false, _) => Err(invalid(format!("{} is no file: name a program that exists", file.display()))),
        };
    }
    let path = path.unwrap_or(PATH_WITHOUT_ONE);
    match split_paths(OsStr::new(path)).any(|folder| is_executable(&beside(&folder.join(program)))) {
        true => Ok(()),
        false => Err(invalid(format!(
            "there is no program {program:?} in its PATH, which is {path:?}: install it, or name its file"
        ))),
    }
}

fn invalid(problem: String) -> Invalid {
    Invalid::new("command", problem)
}

/// A file that somebody may execute; whether it is this user, the start will tell.
fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_where_its_start_will_look() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, mode: u32| {
            let file = directory.path().join(name);
            std::fs::write(&file, "#!/bin/sh\n").expect("written");
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("set");
        };
        write("pull", 0o755);
        write("plain", 0o644);
        let (here, folder) = (directory.path(), directory.path().to_str().expect("a text"));
        for (program, path, directory) in [
            ("sh", None, None),
            ("pull", Some(folder), None),
            ("./pull", None, Some(here)),
            ("pull", Some("/nowhere:."), Some(here)),
            (here.join("pull").to_str().expect("a text"), Some(""), None),
        ] {
            check(program, path, directory).unwrap_or_else(|error| panic!("{program} is there: {error}"));
        }
        for (program, path, directory, says) in [
            ("pull", None, None, "command: there is no program \"pull\" in its PATH, which is \"/bin:/usr/bin\""),
            ("plain", Some(folder), None, "command: there is no program \"plain\" in its PATH"),
            ("./plain", None, Some(here), "plain is not executable: chmod +x it"),
            ("./pull", None, None, "command: ./pull is no file"),
            ("/", None, None, "command: / is no file"),
        ] {
            let error = check(program, path, directory).expect_err(says).to_string();
            assert!(error.starts_with("command: ") && error.contains(says), "{error}");
        }
    }
}
