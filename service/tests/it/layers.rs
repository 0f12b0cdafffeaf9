//! The layers of each crate, and the length of its files.
//!
//! The root of a crate declares its modules in groups, one group a layer, the highest layer first. A module may import
//! modules of its own layer and of lower ones, and the modules of a folder must not import each other in a cycle, neither
//! themselves nor by what lies below them. A module may use its ancestors, except for the root, which is above all layers.
//!
//! Run it with `cargo test -p service --test it layers`; it needs no services.

mod imports;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use imports::{Crate, Files, Import, Imported};

/// A crate of the workspace.
struct Package {
    name: &'static str,
    /// Crates of the workspace that it may use.
    uses: &'static [&'static str],
    /// Crates that only one of its modules, and those below it, may name.
    doors: &'static [(&'static str, &'static str)],
}

const SCHEMAS: Package = Package {
    name: "schemas",
    uses: &[],
    doors: &[],
};
const SERVICE: Package = Package {
    name: "service",
    // None, not even `schemas`: it has no task-domain code.
    uses: &[],
    doors: &[],
};
const PRODUCER: Package = Package {
    name: "producer",
    uses: &["schemas", "service"],
    doors: &[],
};
const ROUTER: Package = Package {
    name: "router",
    uses: &["schemas", "service"],
    doors: &[],
};
const CONSUMER: Package = Package {
    name: "consumer",
    uses: &["schemas", "service"],
    doors: &[("sqlx", "store"), ("rusqlite", "store")],
};
const MANUAL: Package = Package {
    name: "manual",
    uses: &[],
    doors: &[],
};
const PACKAGES: &[Package] = &[SCHEMAS, SERVICE, PRODUCER, ROUTER, CONSUMER, MANUAL];

/// A longer file must give a reason.
const LINES_MAX: usize = 500;
/// Beginning of the reason, in the file's first comment.
const REASON: &str = "Long because ";

#[test]
fn schemas_keeps_its_layers() {
    keeps_its_layers(&SCHEMAS);
}

#[test]
fn service_keeps_its_layers() {
    keeps_its_layers(&SERVICE);
}

#[test]
fn producer_keeps_its_layers() {
    keeps_its_layers(&PRODUCER);
}

#[test]
fn router_keeps_its_layers() {
    keeps_its_layers(&ROUTER);
}

#[test]
fn consumer_keeps_its_layers() {
    keeps_its_layers(&CONSUMER);
}

fn keeps_its_layers(package: &Package) {
    let files = files(&[package.name, "src"]);
    let roots = ["lib.rs", "main.rs"];
    let mut found = Vec::new();
    for root in roots.into_iter().filter(|root| files.contains_key(*root)) {
        found.extend(findings(package, &Crate::read(&files, root)));
    }
    assert!(found.is_empty(), "\n\n{}\n", found.join("\n"));
}

/// All violations in a crate, one per line.
fn findings(package: &Package, library: &Crate) -> Vec<String> {
    let mut found = Vec::new();
    for import in &library.imports {
        found.extend(match &import.to {
            Imported::Module(to) => against_layers(package, library, import, *to),
            Imported::Crate(name) => against_crates(package, library, import, name),
        });
    }
    found.extend(cycles(package, library));
    found.dedup();
    found
}

fn against_layers(
    package: &Package,
    library: &Crate,
    import: &Import,
    to: usize,
) -> Option<String> {
    let layer = |module: usize| {
        let top = library.modules[module].path.split("::").next();
        let is_in = |group: &Vec<String>| group.iter().any(|name| Some(name.as_str()) == top);
        library.layers.iter().position(is_in)
    };
    // The root has none.
    let (from, to_layer) = (layer(import.from)?, layer(to));
    if to_layer.is_some_and(|to| to >= from) {
        return None;
    }
    let shown = |layer: Option<usize>| match layer {
        Some(layer) => format!("layer {}: {}", layer + 1, library.layers[layer].join(", ")),
        None => "above all layers".to_owned(),
    };
    Some(format!(
        "{}: from {} up to {}",
        place(package, library, import, to),
        shown(Some(from)),
        shown(to_layer)
    ))
}

fn against_crates(
    package: &Package,
    library: &Crate,
    import: &Import,
    name: &str,
) -> Option<String> {
    let from = &library.modules[import.from];
    let at = format!("{}/src/{}:{}", package.name, from.file, import.line);
    let is_ours = PACKAGES.iter().any(|package| package.name == name);
    if is_ours && name != package.name && !package.uses.contains(&name) {
        return Some(format!(
            "{at}: names the crate {name}; of the workspace's crates {} may use only these: {:?}",
            package.name, package.uses
        ));
    }
    let (_, door) = package.doors.iter().find(|(behind, _)| *behind == name)?;
    let is_inside = from.path == *door || from.path.starts_with(&format!("{door}::"));
    (!is_inside).then(|| format!("{at}: `{}` names {name}; only `{door}` may", from.path))
}

/// `crate/src/file.rs:7: `a` imports `b``.
fn place(package: &Package, library: &Crate, import: &Import, to: usize) -> String {
    let (from, to) = (&library.modules[import.from], &library.modules[to]);
    let name = |path: &str| match path {
        "" => "the root".to_owned(),
        path => format!("`{path}`"),
    };
    format!(
        "{}/src/{}:{}: {} imports {}",
        package.name,
        from.file,
        import.line,
        name(&from.path),
        name(&to.path)
    )
}

/// Cycles of modules in the same folder, each as short as possible.
fn cycles(package: &Package, library: &Crate) -> Vec<String> {
    let mut imports = BTreeMap::<&str, BTreeMap<&str, &Import>>::new();
    for import in &library.imports {
        if let Imported::Module(to) = import.to
            && let Some((from, to)) = siblings(
                &library.modules[import.from].path,
                &library.modules[to].path,
            )
        {
            let of_module = imports.entry(from).or_default();
            of_module.entry(to).or_insert(import);
        }
    }
    let none = BTreeMap::new();
    let mut found = BTreeSet::new();
    for start in imports.keys() {
        // Breadth first, for a shortest path.
        let (mut came_from, mut queue) = (BTreeMap::new(), VecDeque::from([*start]));
        while let Some(module) = queue.pop_front() {
            for next in imports.get(module).unwrap_or(&none).keys() {
                if !came_from.contains_key(next) {
                    came_from.insert(*next, module);
                    queue.push_back(next);
                }
            }
        }
        let Some(last) = came_from.get(start) else {
            continue;
        };
        let mut cycle = vec![*start];
        let mut module = *last;
        while module != *start {
            cycle.insert(0, module);
            module = came_from[module];
        }
        let first = (0..cycle.len()).min_by_key(|i| cycle[*i]).unwrap();
        cycle.rotate_left(first);
        found.insert(cycle);
    }
    let shown = found.into_iter().map(|cycle| {
        let next = cycle.iter().cycle().skip(1);
        let steps = cycle.iter().zip(next).map(|(from, to)| {
            let import = imports[from][to];
            let Imported::Module(to) = import.to else {
                unreachable!("only modules are in the graph")
            };
            format!("\n    {}", place(package, library, import, to))
        });
        format!(
            "{}: a cycle of {}:{}",
            package.name,
            cycle.join(" → "),
            steps.collect::<String>()
        )
    });
    shown.collect()
}

/// The ancestors of two modules in their lowest common folder; `None` if one is below the other.
fn siblings<'a>(one: &'a str, other: &'a str) -> Option<(&'a str, &'a str)> {
    let mut begin = 0;
    loop {
        let end = |path: &str| path[begin..].find("::").map_or(path.len(), |at| begin + at);
        let (one_end, other_end) = (end(one), end(other));
        let (above_one, above_other) = (&one[..one_end], &other[..other_end]);
        if above_one != above_other {
            return (!above_one.is_empty() && !above_other.is_empty())
                .then_some((above_one, above_other));
        }
        if one_end == one.len() || other_end == other.len() {
            return None;
        }
        begin = one_end + 2;
    }
}

#[test]
fn a_long_file_gives_its_reason() {
    let mut found = Vec::new();
    for package in PACKAGES {
        for (file, source) in files(&[package.name]) {
            let lines = source.lines().count();
            if lines > LINES_MAX && !first_comment(&source).contains(REASON) {
                found.push(format!("{}/{file} has {lines} lines", package.name));
            }
        }
    }
    assert!(
        found.is_empty(),
        "\n\n{}\n\nSplit them, or give the reason in the first comment, which has to hold: {REASON}…\n",
        found.join("\n")
    );
}

/// The text of a file's first comment.
fn first_comment(source: &str) -> String {
    let comment = source.lines().map_while(|line| line.strip_prefix("//"));
    let lines: Vec<&str> = comment
        .map(|line| line.trim_start_matches(['!', '/']).trim())
        .collect();
    lines.join(" ")
}

/// The Rust files below a folder of the repository, by their paths from there.
fn files(folder: &[&str]) -> Files {
    let mut folder_path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned();
    folder_path.extend(folder);
    let (mut files, mut folders) = (Files::new(), vec![folder_path.clone()]);
    while let Some(within) = folders.pop() {
        for entry in std::fs::read_dir(within).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&folder_path).unwrap().to_str().unwrap();
                files.insert(name.to_owned(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

/// A crate of two layers, of which `low.rs` and `high.rs` are the sources.
fn two_layers(low: &str, high: &str) -> Vec<String> {
    let root = "//! Root.\n\nmod high;\n\nmod low;\n\npub use high::High;\npub fn of_root() {}\n";
    of(&[("lib.rs", root), ("high.rs", high), ("low.rs", low)])
}

fn of(files: &[(&str, &str)]) -> Vec<String> {
    let files: Files = files
        .iter()
        .map(|(name, source)| ((*name).to_owned(), (*source).to_owned()))
        .collect();
    findings(&CONSUMER, &Crate::read(&files, "lib.rs"))
}

const HIGH: &str = "pub struct High;\nimpl High { pub const ONE: u8 = 1; }\npub mod inner { pub fn f() {} }\n#[macro_export]\nmacro_rules! shout { () => {} }\n";

#[test]
fn a_lower_module_that_imports_a_higher_one_is_found_however_it_does() {
    for import in [
        "use crate::high::High;",
        "use crate::{high::{High as Other}};",
        "use super::high;",
        "use crate::high::*;",
        "use crate::high::inner::{self, f};",
        "pub(crate) use crate::high::High;",
        // The root's re-export of it.
        "use crate::High;",
        "use super::{High};",
        "use crate as root; fn f() -> root::high::High { todo!() }",
        "use crate::shout;",
        "fn f() { use crate::high::inner; inner::f() }",
        "fn f() -> u8 { crate::high::High::ONE }",
        "fn f() -> u8 { if true { super::high::High::ONE } else { 0 } }",
        "struct Low { field: Option<crate::high::High> }",
        "impl crate::high::High {}",
        "impl Iterator for Vec<super::high::High> { type Item = (); }",
        "fn f() { tokio::select! { x = crate::high::inner::f() => x } }",
        "#[derive(clap::Args)] struct A { #[arg(value_parser = crate::high::inner::f)] a: u8 }",
        "mod inside { fn f() { super::super::high::inner::f() } }",
    ] {
        let found = two_layers(&format!("//! Low.\n{import}\n"), HIGH);
        let expected =
            "consumer/src/low.rs:2: `low` imports `high`: from layer 2: low up to layer 1: high";
        assert!(
            found.iter().any(|line| line == expected),
            "{import}: {found:?}"
        );
    }
}

#[test]
fn the_root_is_above_all_layers() {
    let found = two_layers("fn f() { crate::of_root() }", HIGH).join("\n");
    assert!(
        found.contains("`low` imports the root: from layer 2: low up to above all layers"),
        "{found}"
    );
}

#[test]
fn paths_that_are_not_imports_of_a_higher_module_are_not_found() {
    for low in [
        "//! See [`crate::high`].",
        "#[cfg(test)] mod tests { use crate::high::High; }",
        "#[cfg(test)] use crate::high::High;",
        "#[cfg(test)] fn f() -> crate::high::High { crate::high::High }",
        "struct Low; impl Low { #[cfg(test)] fn f() -> crate::high::High { todo!() } }",
        "use self::inside::high; mod inside { pub fn high() {} } fn f() { high() }",
        "pub(in crate::low) fn f() {}",
        "use high::High;",
        "fn f(high: u8) -> u8 { high }",
    ] {
        assert_eq!(two_layers(low, HIGH), [""; 0], "{low}");
    }
    let found = two_layers(
        "pub struct Low;",
        "use crate::low::Low;\npub struct High(Low);",
    );
    assert_eq!(found, [""; 0]);
}

#[test]
fn a_cycle_of_modules_is_found_with_its_imports() {
    let found = of(&[
        ("lib.rs", "mod a;\nmod b;\nmod c;"),
        ("a.rs", "use crate::b::B;\npub struct A(B);"),
        ("b.rs", "use crate::c::C;\npub struct B(C);"),
        ("c.rs", "//! C.\npub struct C(Option<Box<crate::a::A>>);"),
    ]);
    let expected = "consumer: a cycle of a → b → c:\n    consumer/src/a.rs:1: `a` imports `b`\n    \
                    consumer/src/b.rs:1: `b` imports `c`\n    consumer/src/c.rs:2: `c` imports `a`";
    assert_eq!(found, [expected]);
}

#[test]
fn modules_below_belong_to_those_above_and_may_use_them() {
    let files = |inside: &'static str, a: &'static str| {
        of(&[
            ("lib.rs", "mod a;\nmod b;"),
            ("a/mod.rs", a),
            ("a/one.rs", "pub fn one() { crate::b::b() }"),
            ("a/two.rs", inside),
            ("b.rs", "pub fn b() { crate::a::two::two() }"),
        ])
    };
    // Neither file imports the other in a cycle, but their folders do.
    let found = files("pub fn two() {}", "pub mod one;\npub mod two;").join("\n");
    assert!(found.contains("a cycle of a → b:"), "{found}");
    assert!(found.contains("b.rs:1: `b` imports `a::two`"), "{found}");
    let parent = [
        ("lib.rs", "mod a;"),
        (
            "a.rs",
            "mod one;\nuse one::one;\npub struct A;\nfn f() { one() }",
        ),
        ("a/one.rs", "pub fn one() { let _ = super::A; }"),
    ];
    assert_eq!(of(&parent), [""; 0]);
}

#[test]
fn a_reexport_is_followed_to_the_module_that_defines_the_item() {
    // `a` hands on what `a::one` defines; `a::two` uses it by that way: no cycle with `a`, and none with `b`.
    let found = of(&[
        ("lib.rs", "pub mod a;\nmod b;\npub use b::B;"),
        (
            "a/mod.rs",
            "mod one;\nmod two;\npub use one::One;\npub use two::Two;",
        ),
        ("a/one.rs", "pub struct One;"),
        ("a/two.rs", "use super::One;\npub struct Two(One);"),
        ("b.rs", "use crate::a::{One, Two};\npub struct B(One, Two);"),
    ]);
    assert_eq!(found, [""; 0]);
    let found = of(&[
        ("lib.rs", "pub mod a;\nmod b;\npub use b::B;"),
        ("a.rs", "use crate::B;\npub struct A(Option<Box<B>>);"),
        ("b.rs", "use crate::a::A;\npub struct B(A);"),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn a_function_of_a_modules_name_is_not_taken_for_the_module() {
    let found = of(&[
        ("lib.rs", "mod low;\nmod run;\npub use run::run;"),
        ("low.rs", "pub fn low() { crate::run::report::report() }"),
        (
            "run/mod.rs",
            "pub mod report;\nmod start;\npub use start::run;\nfn shown() {}",
        ),
        ("run/report.rs", "pub fn report() { crate::run::shown() }"),
        ("run/start.rs", "pub fn run() { super::report::report() }"),
    ]);
    assert_eq!(found, [""; 0]);
}

#[test]
fn crates_that_a_module_may_not_name_are_found() {
    for (low, expected) in [
        (
            "use router::route;",
            "consumer/src/low.rs:1: names the crate router; of the workspace's crates consumer may use only these: \
             [\"schemas\", \"service\"]",
        ),
        (
            "fn f() { let _ = sqlx::query(\"\"); }",
            "consumer/src/low.rs:1: `low` names sqlx; only `store` may",
        ),
        (
            "use ::rusqlite::Connection;",
            "consumer/src/low.rs:1: `low` names rusqlite; only `store` may",
        ),
    ] {
        assert_eq!(two_layers(low, HIGH), [expected], "{low}");
    }
    let inside = of(&[
        ("lib.rs", "mod store;"),
        ("store/mod.rs", "mod sqlite;\nuse sqlx::Pool;"),
        (
            "store/sqlite.rs",
            "use rusqlite::Connection;\nuse consumer::X;\nuse schemas::Y;",
        ),
    ]);
    assert_eq!(inside, [""; 0]);
}

#[test]
fn the_reason_of_a_long_file_is_looked_for_in_its_first_comment() {
    let given = "//! A file.\n//!\n//! Long\n//! because it has to be.\n\nuse a::b;\n";
    assert!(first_comment(given).contains(REASON));
    let later = "//! A file.\n\n// Long because it has to be.\n";
    assert!(!first_comment(later).contains(REASON));
}
