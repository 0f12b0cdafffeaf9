//! The files of an open database, and whether their names still lead to them.
//!
//! SQLite continues to write to a file that was removed or replaced, without an error. Nobody who opens the database
//! later sees what it writes there.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// Device and inode.
type Id = (u64, u64);

/// The database's file, its write-ahead log and its shared memory (`-wal`, `-shm`).
pub(super) struct Files([(PathBuf, Option<Id>); 3]);

impl Files {
    /// The files just opened under this name. A file that does not exist is recorded once it does; a database in memory
    /// never has one.
    pub(super) fn of(file: &Path) -> Self {
        let named = |suffix: &str| {
            let mut path = file.as_os_str().to_owned();
            path.push(suffix);
            let path = PathBuf::from(path);
            let id = id(&path).ok().flatten();
            (path, id)
        };
        Self(["", "-wal", "-shm"].map(named))
    }

    /// # Errors
    /// [`StoreError::Replaced`] if one of them was removed or replaced.
    pub(super) fn are_in_place(&mut self) -> Result<(), StoreError> {
        for (path, known) in &mut self.0 {
            let found = id(path)
                .map_err(|error| StoreError::Retry(format!("{}: {error}", path.display())))?;
            match (&known, found) {
                (None, found) => *known = found,
                (Some(known), Some(found)) if *known == found => {}
                (Some(_), found) => {
                    return Err(StoreError::Replaced(format!(
                        "{} was {} while it was open",
                        path.display(),
                        if found.is_some() {
                            "replaced"
                        } else {
                            "removed"
                        }
                    )));
                }
            }
        }
        Ok(())
    }
}

fn id(path: &Path) -> std::io::Result<Option<Id>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_removed_or_replaced_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let [file, log, other] = ["a.db", "a.db-wal", "b"].map(|name| folder.path().join(name));
        std::fs::write(&file, "").unwrap();
        let mut files = Files::of(&file);
        files.are_in_place().unwrap();
        // The log is created later.
        std::fs::write(&log, "").unwrap();
        files.are_in_place().unwrap();
        std::fs::remove_file(&log).unwrap();
        let missed = |files: &mut Files| files.are_in_place().unwrap_err().to_string();
        assert!(missed(&mut files).ends_with("a.db-wal was removed while it was open"));
        std::fs::write(&other, "").unwrap();
        std::fs::rename(&other, &file).unwrap();
        assert!(missed(&mut files).ends_with("a.db was replaced while it was open"));
        Files::of(&other).are_in_place().unwrap();
    }
}
