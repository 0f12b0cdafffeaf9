//! A report file that is replaced atomically: readers such as node_exporter see the old contents or the new ones, even
//! after a crash of the machine.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use service::exit;
use tempfile::Builder;

/// Maximum length of a chain of symbolic links, as in Linux.
const MAX_LINKS: usize = 40;

/// Replaces the contents of a file, or creates it. The new contents go into a temporary file in the same folder, which
/// is synced and renamed; for a symbolic link, its target is replaced. An existing file keeps its permissions; a new
/// one gets those that the umask allows. Pipes and devices are written to directly.
///
/// # Errors
/// If the file cannot be replaced: it is then unchanged, and no temporary file is left. A failure to sync the folder is
/// only logged: the file is replaced, but a crash of the machine may restore the old one.
pub(super) fn replace(file: &Path, contents: &[u8]) -> io::Result<()> {
    let existing = match fs::metadata(file) {
        Ok(existing) if existing.is_file() => Some(existing),
        Ok(_) => {
            let _waiting = exit::waiting(format!("a reader of {}", file.display()));
            let mut pipe = OpenOptions::new().write(true).open(file)?;
            return pipe.write_all(contents);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // Not earlier: links in /proc to pipes have no target that can be opened by name.
    let target = target(file)?;
    let folder = folder_of(&target);
    let mut temporary = Builder::new()
        .prefix(".report-")
        .suffix(".tmp")
        .permissions(Permissions::from_mode(0o666)) // less the umask
        .tempfile_in(folder)?;
    if let Some(existing) = existing {
        temporary
            .as_file()
            .set_permissions(existing.permissions())?;
    }
    temporary.write_all(contents)?;
    temporary.as_file().sync_all()?;
    temporary.persist(&target)?;
    // Some file systems cannot sync folders, and some users may not open one for reading.
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all())
        && !matches!(
            error.kind(),
            ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied
        )
    {
        tracing::warn!(
            "{} was replaced, but its folder {} cannot be synced: {error}",
            target.display(),
            folder.display()
        );
    }
    Ok(())
}

/// The folder of a file.
pub(super) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Resolves all symbolic links of a path; the target need not exist.
fn target(file: &Path) -> io::Result<PathBuf> {
    let mut target = file.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(to) => target = folder_of(&target).join(to),
            // Not a symbolic link, or nothing there.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                return Ok(target);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    fn mode(file: &Path) -> u32 {
        fs::metadata(file).unwrap().permissions().mode() & 0o777
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_made_and_replaced_with_the_permissions_of_a_plain_one_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let [file, plain, other] =
            ["audit.json", "plain", "audit.new"].map(|name| folder.path().join(name));
        fs::write(&plain, "").unwrap();
        fs::write(&other, "a user's").unwrap();
        replace(&file, b"first").unwrap();
        assert_eq!(mode(&file), mode(&plain));
        fs::set_permissions(&file, Permissions::from_mode(0o604)).unwrap();
        replace(&file, b"2nd").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"2nd");
        assert_eq!(mode(&file), 0o604);
        assert_eq!(fs::read(&other).unwrap(), b"a user's");
        assert_eq!(names(folder.path()), ["audit.json", "audit.new", "plain"]);
    }

    #[test]
    fn writers_at_once_leave_one_whole_file_each() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["audit.json", "audit.html"].map(|name| folder.path().join(name));
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let file = &files[writer % 2];
                scope.spawn(move || {
                    for _ in 0..20 {
                        let contents = vec![b'0' + writer as u8; 10_000];
                        replace(file, &contents).unwrap();
                    }
                });
            }
        });
        for (parity, file) in files.iter().enumerate() {
            let contents = fs::read(file).unwrap();
            assert_eq!(contents.len(), 10_000);
            assert!(contents.iter().all(|byte| *byte == contents[0]));
            assert_eq!(usize::from(contents[0] - b'0') % 2, parity);
        }
        assert_eq!(names(folder.path()), ["audit.html", "audit.json"]);
    }

    #[test]
    fn the_target_of_a_link_is_replaced_there_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let [inner, link, chain] =
            ["inner", "link.json", "chain.json"].map(|n| folder.path().join(n));
        fs::create_dir(&inner).unwrap();
        symlink("inner/target.json", &link).unwrap();
        symlink(&link, &chain).unwrap();
        for contents in ["made", "replaced"] {
            replace(&chain, contents.as_bytes()).unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(
                fs::read_to_string(inner.join("target.json")).unwrap(),
                contents
            );
        }
        assert_eq!(names(&inner), ["target.json"]);
        let ring = folder.path().join("ring.json");
        symlink(&ring, &ring).unwrap();
        assert!(replace(&ring, b"").is_err());
    }

    #[test]
    fn a_pipe_and_a_device_are_written_to_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let [pipe, null] = ["pipe.json", "null.json"].map(|name| folder.path().join(name));
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let read = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        replace(&pipe, b"through").unwrap();
        assert_eq!(read.join().unwrap(), b"through");
        symlink("/dev/null", &null).unwrap();
        replace(&null, b"away").unwrap();
        // Like /dev/stdout.
        let (mut reader, writer) = io::pipe().unwrap();
        let stdout = folder.path().join("stdout.json");
        symlink(format!("/proc/self/fd/{}", writer.as_raw_fd()), &stdout).unwrap();
        replace(&stdout, b"out").unwrap();
        drop(writer);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"out");
        let expected = ["null.json", "pipe.json", "stdout.json"];
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_file_as_it_was_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        // A folder has the name of the file.
        fs::create_dir(folder.path().join("a.json")).unwrap();
        assert!(replace(&folder.path().join("a.json"), b"").is_err());
        assert!(replace(&folder.path().join("none/b.json"), b"").is_err());
        // Nobody may create a file there.
        assert!(replace(Path::new("/proc/c.json"), b"").is_err());
        assert_eq!(names(folder.path()), ["a.json"]);
    }
}
