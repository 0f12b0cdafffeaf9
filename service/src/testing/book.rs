//! The book in `docs/`: its pages, and their generated parts.

use std::path::{Path, PathBuf};

/// Pages outside the table of contents.
const FRONT: [&str; 4] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
];

const SOURCES: &str = "docs/src";

/// A page.
pub struct Page {
    /// Path from the root of the repository.
    pub path: String,
    /// Content of the file.
    pub text: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The file at a path from the root of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `README.md`, the pages of the book in the order of its table of contents, and the other pages at the root.
pub fn pages() -> Vec<Page> {
    let contents = read(&format!("{SOURCES}/SUMMARY.md"));
    let links = contents.split("](").skip(1);
    let listed = links.map(|link| format!("{SOURCES}/{}", link.split(')').next().unwrap()));
    let [readme, others @ ..] = FRONT;
    let paths = std::iter::once(readme.to_owned())
        .chain(listed)
        .chain(others.map(str::to_owned));
    paths
        .map(|path| Page {
            text: read(&path),
            path,
        })
        .collect()
}

/// Checks that the section `name` of a page, between `<!-- generated: NAME -->` and `<!-- end -->`, contains
/// `text`. With `UPDATE_DOCS=1` in the environment, writes `text` there instead. Only one test may check a
/// page, because tests run concurrently.
pub fn assert_generated(page: &str, name: &str, text: &str) {
    let path = format!("{SOURCES}/{page}");
    let found = read(&path);
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = found
        .split_once(&begin)
        .unwrap_or_else(|| panic!("{path} has no line {begin:?}"));
    let (old, after) = rest
        .split_once("<!-- end -->")
        .unwrap_or_else(|| panic!("{path}: {name} has no end"));
    let new = format!("\n{}\n\n", text.trim());
    if old == new {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "{path}: {name} is not what the code says. To write it again: UPDATE_DOCS=1 cargo test --workspace book\n{new}"
    );
    let updated = format!("{before}{begin}{new}<!-- end -->{after}");
    std::fs::write(root().join(path), updated).unwrap();
}
