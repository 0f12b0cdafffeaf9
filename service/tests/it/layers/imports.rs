//! The modules of a crate and what they import, read from its source by syn.
//!
//! A module is a file: modules written inside a file belong to it, and those under `#[cfg(test)]` are left out. An import is
//! any path that leads to another file of the crate or to another crate: in a `use`, a type, an expression, an attribute or
//! the tokens of a macro call. It is followed through re-exports to the file that defines the item. Where a module
//! re-exports from the folder below it, that alone is no import.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, File, ImplItem, Item, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility};

/// The source files of a crate by their paths below its `src`.
pub(crate) type Files = BTreeMap<String, String>;

/// One target of a package, a library or a program.
#[derive(Default)]
pub(crate) struct Crate {
    /// The root comes first.
    pub(crate) modules: Vec<Module>,
    pub(crate) imports: Vec<Import>,
    /// Modules of the root in groups, as blank lines part them: the highest layer comes first.
    pub(crate) layers: Vec<Vec<String>>,
}

#[derive(Default)]
pub(crate) struct Module {
    /// `store::postgres`; empty for the root.
    pub(crate) path: String,
    /// Below `src`.
    pub(crate) file: String,
    /// The module whose file it is written in: itself, unless it is written inside another.
    owner: usize,
    parent: usize,
    names: BTreeMap<String, BTreeSet<Target>>,
    uses: Vec<Use>,
    paths: Vec<(Vec<String>, usize)>,
    /// Names that stand alone in it, without `::`.
    bare: BTreeSet<String>,
}

pub(crate) struct Import {
    /// Index of the module that imports.
    pub(crate) from: usize,
    pub(crate) to: Imported,
    pub(crate) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Imported {
    /// Index of the module.
    Module(usize),
    Crate(String),
}

struct Use {
    path: Vec<String>,
    /// `None`: every name (`*`).
    name: Option<String>,
    is_public: bool,
    line: usize,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Module(usize),
    /// An item that this module defines.
    Item(usize),
    Crate(String),
}

impl Crate {
    /// Reads the crate whose root is this file.
    pub(crate) fn read(files: &Files, root: &str) -> Self {
        let mut read = Self::default();
        read.module(files, root, String::new(), 0);
        read.bind_uses();
        read.follow();
        read
    }

    fn module(&mut self, files: &Files, file: &str, path: String, parent: usize) {
        let source = &files[file];
        let parsed = syn::parse_file(source).unwrap_or_else(|error| panic!("{file}: {error}"));
        let module = self.add(path, file, None, parent);
        if module == 0 {
            self.layers = groups(&parsed);
        }
        self.items(files, module, &parsed.items);
    }

    fn add(&mut self, path: String, file: &str, owner: Option<usize>, parent: usize) -> usize {
        let module = self.modules.len();
        self.modules.push(Module {
            path,
            file: file.to_owned(),
            owner: owner.unwrap_or(module),
            parent,
            ..Module::default()
        });
        module
    }

    fn items(&mut self, files: &Files, module: usize, items: &[Item]) {
        for item in items.iter().filter(|item| !is_test(attributes(item))) {
            if let Item::Mod(declared) = item {
                self.child(files, module, declared);
                continue;
            }
            if let Some(name) = defined(item) {
                let exported = |attribute: &Attribute| attribute.path().is_ident("macro_export");
                let is_at_root = attributes(item).iter().any(exported);
                let scope = if is_at_root { 0 } else { module };
                self.name(scope, name, Target::Item(module));
            }
            Walk(&mut self.modules[module]).visit_item(item);
        }
    }

    fn child(&mut self, files: &Files, module: usize, declared: &ItemMod) {
        let name = declared.ident.to_string();
        self.name(module, name.clone(), Target::Module(self.modules.len()));
        let Module {
            path, file, owner, ..
        } = &self.modules[module];
        let (owner, file) = (*owner, file.clone());
        let path = match path.as_str() {
            "" => name.clone(),
            path => format!("{path}::{name}"),
        };
        if let Some((_, items)) = &declared.content {
            let child = self.add(path, &file, Some(owner), module);
            return self.items(files, child, items);
        }
        let below = path.replace("::", "/");
        let candidates = [format!("{below}.rs"), format!("{below}/mod.rs")];
        let found = candidates.iter().find(|file| files.contains_key(*file));
        let found = found.unwrap_or_else(|| panic!("{file}: no file of module {path}"));
        self.module(files, found, path, module);
    }

    fn name(&mut self, module: usize, name: String, target: Target) -> bool {
        let names = &mut self.modules[module].names;
        names.entry(name).or_default().insert(target)
    }

    /// Gives the names of all `use` their meanings: each may rest on another.
    fn bind_uses(&mut self) {
        let mut is_new = true;
        while is_new {
            is_new = false;
            for module in 0..self.modules.len() {
                for i in 0..self.modules[module].uses.len() {
                    let Use { path, name, .. } = &self.modules[module].uses[i];
                    let name = name.clone();
                    for target in self.resolve(module, path) {
                        match (&name, target) {
                            (Some(name), target) => {
                                is_new |= self.name(module, name.clone(), target)
                            }
                            (None, Target::Module(other)) => {
                                for (name, targets) in self.modules[other].names.clone() {
                                    for target in targets {
                                        is_new |= self.name(module, name.clone(), target);
                                    }
                                }
                            }
                            (None, _) => {}
                        }
                    }
                }
            }
        }
    }

    fn resolve(&self, module: usize, path: &[String]) -> BTreeSet<Target> {
        let (first, rest) = path.split_first().expect("a path is not empty");
        let mut targets = match first.as_str() {
            "crate" => BTreeSet::from([Target::Module(0)]),
            "self" => BTreeSet::from([Target::Module(module)]),
            "super" => BTreeSet::from([Target::Module(self.modules[module].parent)]),
            "Self" => BTreeSet::new(),
            name => match self.modules[module].names.get(name) {
                Some(targets) => targets.clone(),
                None => BTreeSet::from([Target::Crate(name.to_owned())]),
            },
        };
        for name in rest {
            // A function may have the same name as a module, but has nothing below it.
            if targets
                .iter()
                .any(|target| matches!(target, Target::Module(_)))
            {
                targets.retain(|target| matches!(target, Target::Module(_)));
            }
            let step = |target: Target| match target {
                Target::Module(at) if name == "super" => {
                    BTreeSet::from([Target::Module(self.modules[at].parent)])
                }
                Target::Module(_) if name == "self" => BTreeSet::from([target]),
                Target::Module(at) => match self.modules[at].names.get(name) {
                    Some(targets) => targets.clone(),
                    None => BTreeSet::from([Target::Item(at)]),
                },
                target => BTreeSet::from([target]),
            };
            targets = targets.into_iter().flat_map(step).collect();
        }
        targets
    }

    /// Follows each path to what it imports.
    fn follow(&mut self) {
        let mut imports = Vec::new();
        for (at, module) in self.modules.iter().enumerate() {
            let uses = module
                .uses
                .iter()
                .map(|one| (&one.path, one.line, Some(one)));
            let paths = module.paths.iter().map(|(path, line)| (path, *line, None));
            for (path, line, by_use) in uses.chain(paths) {
                for target in self.resolve(at, path) {
                    let to = match target {
                        Target::Crate(name) => Imported::Crate(name),
                        Target::Module(to) | Target::Item(to) => {
                            let to = self.modules[to].owner;
                            let is_map = by_use.is_some_and(|one| self.is_map(at, one, to));
                            if to == module.owner || is_map {
                                continue;
                            }
                            Imported::Module(to)
                        }
                    };
                    imports.push(Import {
                        from: module.owner,
                        to,
                        line,
                    });
                }
            }
        }
        self.imports = imports;
    }

    /// Whether this `use` only hands on what a module below defines.
    fn is_map(&self, at: usize, by_use: &Use, to: usize) -> bool {
        let prefix = match self.modules[at].path.as_str() {
            "" => String::new(),
            path => format!("{path}::"),
        };
        let uses_it = |name: &String| self.modules[at].bare.contains(name);
        by_use.is_public
            && self.modules[to].path.starts_with(&prefix)
            && !by_use.name.as_ref().is_some_and(uses_it)
    }
}

/// The modules that a root declares, in the groups that blank lines (or anything else) part.
fn groups(root: &File) -> Vec<Vec<String>> {
    let (mut groups, mut last_line) = (Vec::<Vec<String>>::new(), None);
    for item in &root.items {
        let Item::Mod(declared) = item else { continue };
        if is_test(&declared.attrs) {
            continue;
        }
        let first = declared.attrs.first().map(Spanned::span);
        let begins = first.unwrap_or(declared.span()).start().line;
        let name = declared.ident.to_string();
        match groups.last_mut() {
            Some(group) if last_line == Some(begins - 1) => group.push(name),
            _ => groups.push(vec![name]),
        }
        last_line = Some(declared.span().end().line);
    }
    groups
}

/// Gathers the paths of an item.
struct Walk<'a>(&'a mut Module);

impl Walk<'_> {
    fn path(&mut self, path: Vec<String>, line: usize) {
        match <[String; 1]>::try_from(path) {
            Ok([name]) => drop(self.0.bare.insert(name)),
            Err(path) if path.is_empty() => {}
            Err(path) => self.0.paths.push((path, line)),
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons, mut line) = (Vec::new(), 0, 0);
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.path(std::mem::take(&mut path), line);
                    }
                    line = name.span().start().line;
                    path.push(name.to_string());
                    colons = 0;
                }
                other => {
                    self.path(std::mem::take(&mut path), line);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.path(path, line);
    }

    fn use_tree(&mut self, tree: &UseTree, before: &[String], is_public: bool) {
        let line = tree.span().start().line;
        let mut path = before.to_vec();
        let name = match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                return self.use_tree(&tree.tree, &path, is_public);
            }
            UseTree::Group(group) => {
                let each = group.items.iter();
                return each.for_each(|tree| self.use_tree(tree, before, is_public));
            }
            UseTree::Name(tree) if tree.ident == "self" => before.last().cloned(),
            UseTree::Name(tree) => {
                path.push(tree.ident.to_string());
                Some(tree.ident.to_string())
            }
            UseTree::Rename(tree) => {
                path.push(tree.ident.to_string());
                Some(tree.rename.to_string())
            }
            UseTree::Glob(_) => None,
        };
        self.0.uses.push(Use {
            path,
            name,
            is_public,
            line,
        });
    }
}

impl Visit<'_> for Walk<'_> {
    fn visit_item(&mut self, item: &Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &ImplItem) {
        match item {
            ImplItem::Fn(function) if is_test(&function.attrs) => {}
            item => visit::visit_impl_item(self, item),
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        self.use_tree(&item.tree, &[], is_public);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names = path.segments.iter().map(|part| part.ident.to_string());
        self.path(names.collect(), path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }

    /// `pub(in path)` limits and imports nothing.
    fn visit_visibility(&mut self, _: &Visibility) {}
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name that an item gives to something.
fn defined(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}
