//! Paths → logs: a log is a file, or a folder of the files that it was rolled into.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Logs of one run at most.
const LOGS_MAX: usize = 100_000;
/// Folders in folders.
const DEPTH_MAX: usize = 8;
/// Suffixes of Spark's codecs, and Databricks'.
const CODECS: &[&str] = &[".zstd", ".zst", ".lz4", ".snappy", ".lzf", ".gz"];

/// A file of a log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    /// In the series of a log's files.
    pub(super) number: u64,
    /// It replaces the file of its number and all files before it.
    pub(super) compacted: bool,
}

/// A log of one attempt of an application.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Log {
    /// The file, or the folder of its files.
    pub(super) path: PathBuf,
    /// Its files, the oldest first; at least one.
    pub(super) files: Vec<LogFile>,
    /// A number in the series of its files is missing, or the first ones are.
    pub(super) gaps: bool,
    /// A History Server has compacted its oldest files.
    pub(super) compacted: bool,
    /// Databricks wrote it: files are compressed, and renamed, when they have been written.
    pub(super) is_databricks: bool,
}

impl Log {
    /// What Spark named it by: the application's id, and its attempt's where it has attempts.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        let name = stem(&name.to_string_lossy()).to_owned();
        match name.strip_prefix("eventlog_v2_") {
            Some(application) => application.to_owned(),
            None => name,
        }
    }
}

/// Of a log that is being written.
const IN_PROGRESS: &str = ".inprogress";

/// A path without what says that the file is being written: that of the log once it is complete.
pub(super) fn complete(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| name.strip_suffix(IN_PROGRESS)) {
        Some(name) => path.with_file_name(name),
        None => path.to_owned(),
    }
}

/// A path, or that of the complete log if the file was renamed to it.
pub(super) fn present(path: &Path) -> PathBuf {
    let renamed = complete(path);
    match !path.exists() && renamed.exists() {
        true => renamed,
        false => path.to_owned(),
    }
}

/// A name without what says how and whether the file is written.
fn stem(name: &str) -> &str {
    let name = name.strip_suffix(IN_PROGRESS).unwrap_or(name);
    let name = name.strip_suffix(".compact").unwrap_or(name);
    CODECS
        .iter()
        .find_map(|codec| name.strip_suffix(codec))
        .unwrap_or(name)
}

/// The logs at a path.
#[derive(Debug)]
pub(super) struct Found {
    /// By name.
    pub(super) logs: Vec<Log>,
    /// Files and folders below the path that could not be searched, each with the reason.
    pub(super) left_out: Vec<String>,
}

/// Finds the logs at a path; those found so far once `is_stopped`, which is asked before each folder and file.
///
/// # Errors
/// If the path itself cannot be read, or holds too many logs.
pub(super) fn logs(path: &Path, is_stopped: &dyn Fn() -> bool) -> io::Result<Found> {
    let metadata = fs::metadata(path)?;
    let mut search = Search {
        is_stopped,
        folders: HashSet::new(),
        found: Vec::new(),
        left_out: Vec::new(),
    };
    if metadata.is_dir() {
        search.folder(path, 0)?;
    } else if metadata.is_file() {
        search.found.push(single(path.to_owned()));
    } else {
        // Its first lines are read twice.
        return Err(io::Error::other("is neither a file nor a folder"));
    }
    if search.found.len() > LOGS_MAX || search.left_out.len() > LOGS_MAX {
        return Err(io::Error::other(format!(
            "holds more than {LOGS_MAX} logs or files; name folders below it instead"
        )));
    }
    Ok(Found {
        logs: search.found,
        left_out: search.left_out,
    })
}

fn single(path: PathBuf) -> Log {
    let file = LogFile {
        path: path.clone(),
        number: 0,
        compacted: false,
    };
    Log {
        files: vec![file],
        path,
        gaps: false,
        compacted: false,
        is_databricks: false,
    }
}

struct Search<'a> {
    is_stopped: &'a dyn Fn() -> bool,
    /// Those that were searched, without symbolic links: a link may lead to a folder that was, or is being, searched.
    folders: HashSet<PathBuf>,
    found: Vec<Log>,
    left_out: Vec<String>,
}

impl Search<'_> {
    fn folder(&mut self, folder: &Path, depth: usize) -> io::Result<()> {
        if !self.folders.insert(fs::canonicalize(folder)?) {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // Hadoop's checksums begin with a dot, other tools' marks with an underscore.
            match entry.file_name().to_str() {
                Some(name) if name.starts_with(['.', '_']) => {}
                Some(name) => names.push(name.to_owned()),
                None => self.leave_out(
                    &entry.path(),
                    "its name is not UTF-8; rename it, or name it itself",
                ),
            }
        }
        names.sort_unstable();
        if let Some(log) = rolled(folder, &names).or_else(|| databricks(folder, &names)) {
            self.found.push(log);
            return Ok(());
        }
        for name in names {
            if (self.is_stopped)() {
                return Ok(());
            }
            let path = folder.join(&name);
            let Ok(metadata) = fs::metadata(&path) else {
                // It was renamed or removed meanwhile.
                continue;
            };
            if metadata.is_dir() {
                if depth == DEPTH_MAX {
                    let why = format!("it is more than {DEPTH_MAX} folders deep; name it itself");
                    self.leave_out(&path, &why);
                } else if let Err(error) = self.folder(&path, depth + 1) {
                    self.leave_out(&path, &error.to_string());
                }
            } else if metadata.is_file() && metadata.len() > 0 {
                self.found.push(single(path));
            }
            if self.found.len() > LOGS_MAX {
                return Ok(());
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        // One more shows that there are too many.
        if self.left_out.len() <= LOGS_MAX {
            self.left_out
                .push(format!("{} is left out: {why}", path.display()));
        }
    }
}

/// `events_<number>_<application>`, as Spark rolls a log since 3.0.
fn rolled(folder: &Path, names: &[String]) -> Option<Log> {
    let number = |name: &str| -> Option<u64> {
        let (number, _) = name.strip_prefix("events_")?.split_once('_')?;
        number.parse().ok()
    };
    let mut files: Vec<(u64, bool, &String)> = names
        .iter()
        // Its content is in other files until it is complete.
        .filter(|name| !name.ends_with(".compact.inprogress"))
        .filter_map(|name| Some((number(name)?, name.ends_with(".compact"), name)))
        .collect();
    files.sort_unstable();
    // A compacted file replaces the file of its number and all files before it.
    let compacted = files.iter().rposition(|(_, is_compact, _)| *is_compact);
    files.drain(..compacted.unwrap_or(0));
    let first = files.first()?.0;
    let follow = files
        .windows(2)
        .all(|pair| pair[0].0.checked_add(1) == Some(pair[1].0));
    Some(Log {
        path: folder.to_owned(),
        gaps: !follow || (compacted.is_none() && first > 1),
        compacted: compacted.is_some(),
        is_databricks: false,
        files: files
            .iter()
            .map(|(number, compacted, name)| LogFile {
                path: folder.join(name),
                number: *number,
                compacted: *compacted,
            })
            .collect(),
    })
}

/// `eventlog-2021-06-14--20-00.gz` and the like, and `eventlog`, the newest.
fn databricks(folder: &Path, names: &[String]) -> Option<Log> {
    let mut files: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with("eventlog-") && name.contains("--"))
        .collect();
    files.extend(names.iter().find(|name| stem(name) == "eventlog"));
    // A folder of that name holds such folders.
    files.retain(|name| folder.join(name).is_file());
    (!files.is_empty()).then(|| Log {
        path: folder.to_owned(),
        files: (0..)
            .zip(&files)
            .map(|(number, name)| LogFile {
                path: folder.join(name),
                number,
                compacted: false,
            })
            .collect(),
        gaps: false,
        compacted: false,
        is_databricks: true,
    })
}
