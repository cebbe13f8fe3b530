//! Which source files of a crate import each other. Every `use` and every path in the code counts, in macros
//! too, and leads to the file that defines the item: a re-export is followed to the definition. Code under
//! `cfg(test)` does not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use syn::buffer::Cursor;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Token, UseTree};

/// One file needs an item of another file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: PathBuf,
    pub to: PathBuf,
    /// The path as written in the code.
    pub path: String,
}

/// Returns the imports among the files of the crate that begins with the file `root`.
pub fn imports(root: &Path) -> BTreeSet<Import> {
    let mut tree = Tree::default();
    let dir = root.parent().unwrap().to_owned();
    tree.add_file(root.to_owned(), dir, None);
    let mut found = BTreeSet::new();
    for module in 0..tree.modules.len() {
        let mut paths = Paths::default();
        tree.modules[module].code.iter().for_each(|item| paths.visit_item(item));
        for path in paths.found {
            let from = &tree.modules[module].file;
            for to in tree.files(module, &path) {
                if to != from {
                    found.insert(Import { from: from.clone(), to: to.clone(), path: path.join("::") });
                }
            }
        }
    }
    found
}

/// Returns the imports that close a cycle, of any length. If one import of each cycle is removed, none is
/// left.
pub fn in_cycles(imports: &BTreeSet<Import>) -> BTreeSet<Import> {
    imports.iter().filter(|import| way_back(imports, import).is_some()).cloned().collect()
}

/// Returns each cycle that is the shortest for one of its imports, as `a.rs -> b.rs -> a.rs`.
pub fn cycles(imports: &BTreeSet<Import>) -> BTreeSet<String> {
    let rotated = |mut files: Vec<&Path>| {
        let first = (0..files.len()).min_by_key(|at| files[*at]).unwrap();
        files.rotate_left(first);
        files.push(files[0]);
        files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" -> ")
    };
    imports.iter().filter_map(|import| way_back(imports, import)).map(rotated).collect()
}

/// Returns the files from the imported one back to the importing one, on the shortest path.
fn way_back<'a>(imports: &'a BTreeSet<Import>, closing: &'a Import) -> Option<Vec<&'a Path>> {
    let mut reached_from: BTreeMap<&Path, &Path> = BTreeMap::new();
    let mut queue = VecDeque::from([closing.to.as_path()]);
    while let Some(file) = queue.pop_front() {
        if file == closing.from {
            let mut path = vec![file];
            while *path.last().unwrap() != closing.to {
                path.push(reached_from[path.last().unwrap()]);
            }
            path.reverse();
            return Some(path);
        }
        for import in imports.iter().filter(|import| import.from == file) {
            if import.to != closing.to && !reached_from.contains_key(import.to.as_path()) {
                reached_from.insert(&import.to, file);
                queue.push_back(&import.to);
            }
        }
    }
    None
}

struct Module {
    file: PathBuf,
    parent: Option<usize>,
    /// Names of items, without modules and imports.
    items: BTreeSet<String>,
    children: BTreeMap<String, usize>,
    uses: BTreeMap<String, Vec<Vec<String>>>,
    globs: Vec<Vec<String>>,
    code: Vec<Item>,
}

#[derive(Clone, Copy)]
enum Target {
    Module(usize),
    /// An item that this module defines.
    ItemOf(usize),
}

#[derive(Default)]
struct Tree {
    modules: Vec<Module>,
}

impl Tree {
    /// `dir` is the directory of the files of its child modules.
    fn add_file(&mut self, file: PathBuf, dir: PathBuf, parent: Option<usize>) -> usize {
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let code = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.add(file, dir, parent, code.items)
    }

    fn add(&mut self, file: PathBuf, dir: PathBuf, parent: Option<usize>, code: Vec<Item>) -> usize {
        let this = self.modules.len();
        self.modules.push(Module {
            file: file.clone(),
            parent,
            items: BTreeSet::new(),
            children: BTreeMap::new(),
            uses: BTreeMap::new(),
            globs: Vec::new(),
            code: Vec::new(),
        });
        for item in &code {
            if is_test(attributes(item)) {
                continue;
            }
            match item {
                Item::Mod(module) => {
                    let name = module.ident.to_string();
                    let inside = dir.join(&name);
                    let child = match &module.content {
                        Some((_, items)) => self.add(file.clone(), inside, Some(this), items.clone()),
                        None => {
                            let child = self.child_file(&file, &dir, &name, &module.attrs);
                            let inside = match child.file_name() {
                                Some(file) if file == "mod.rs" => child.parent().unwrap().to_owned(),
                                _ => child.with_extension(""),
                            };
                            self.add_file(child, inside, Some(this))
                        }
                    };
                    self.modules[this].children.insert(name, child);
                }
                other => self.modules[this].items.extend(item_name(other)),
            }
        }
        let mut uses = Uses::default();
        code.iter().for_each(|item| uses.visit_item(item));
        for (name, path) in uses.named {
            self.modules[this].uses.entry(name).or_default().push(path);
        }
        self.modules[this].globs = uses.globs;
        self.modules[this].code = code;
        this
    }

    fn child_file(&self, file: &Path, dir: &Path, name: &str, attributes: &[Attribute]) -> PathBuf {
        for attribute in attributes {
            if let Meta::NameValue(pair) = &attribute.meta
                && pair.path.is_ident("path")
                && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) = &pair.value
            {
                return file.parent().unwrap().join(path.value());
            }
        }
        let flat = dir.join(format!("{name}.rs"));
        if flat.exists() { flat } else { dir.join(name).join("mod.rs") }
    }

    /// Returns the files with the items that the path may mean. A path to a module is not an import: its
    /// items are imported by paths of their own.
    fn files(&self, module: usize, path: &[String]) -> Vec<&PathBuf> {
        let targets = self.resolve(module, path, &mut BTreeSet::new());
        let item = |target: Target| match target {
            Target::ItemOf(module) => Some(&self.modules[module].file),
            Target::Module(_) => None,
        };
        targets.into_iter().filter_map(item).collect()
    }

    fn resolve(&self, module: usize, path: &[String], seen: &mut BTreeSet<(usize, String)>) -> Vec<Target> {
        let mut targets = vec![Target::Module(module)];
        for (at, name) in path.iter().enumerate() {
            targets = targets
                .into_iter()
                .flat_map(|target| match (target, name.as_str()) {
                    (Target::ItemOf(_), _) => vec![target],
                    (Target::Module(_), "crate") if at == 0 => vec![Target::Module(0)],
                    (Target::Module(_), "self") => vec![target],
                    (Target::Module(module), "super") => {
                        self.modules[module].parent.map(Target::Module).into_iter().collect()
                    }
                    (Target::Module(module), name) => self.lookup(module, name, seen),
                })
                .collect();
        }
        targets
    }

    fn lookup(&self, module: usize, name: &str, seen: &mut BTreeSet<(usize, String)>) -> Vec<Target> {
        if !seen.insert((module, name.to_owned())) {
            return Vec::new();
        }
        let here = &self.modules[module];
        let mut found: Vec<Target> =
            here.children.get(name).map(|child| Target::Module(*child)).into_iter().collect();
        if here.items.contains(name) {
            found.push(Target::ItemOf(module));
        }
        for path in here.uses.get(name).into_iter().flatten() {
            found.extend(self.resolve(module, path, seen));
        }
        if found.is_empty() {
            for path in &here.globs {
                for target in self.resolve(module, path, &mut seen.clone()) {
                    if let Target::Module(of) = target {
                        found.extend(self.lookup(of, name, seen));
                    }
                }
            }
        }
        seen.remove(&(module, name.to_owned()));
        found
    }
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
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn item_name(item: &Item) -> Option<String> {
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

/// Whether the item is compiled only for tests: `cfg(test)` or `cfg(all(test, ..))`.
fn is_test(attributes: &[Attribute]) -> bool {
    let condition = |attribute: &Attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => list.parse_args::<Meta>().ok(),
        _ => None,
    };
    attributes.iter().filter_map(condition).any(|condition| match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => list
            .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
            .is_ok_and(|all| all.iter().any(|meta| meta.path().is_ident("test"))),
        _ => false,
    })
}

/// The names that the `use` items of a module bring into its scope.
#[derive(Default)]
struct Uses {
    named: Vec<(String, Vec<String>)>,
    globs: Vec<Vec<String>>,
}

impl Uses {
    fn add(&mut self, prefix: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add(&with(&path.ident), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add(prefix, tree)),
            UseTree::Glob(_) => self.globs.push(prefix.to_vec()),
            UseTree::Name(name) if name.ident == "self" => {
                self.named.extend(prefix.last().map(|last| (last.clone(), prefix.to_vec())));
            }
            UseTree::Name(name) => self.named.push((name.ident.to_string(), with(&name.ident))),
            UseTree::Rename(renamed) if renamed.ident == "self" => {
                self.named.push((renamed.rename.to_string(), prefix.to_vec()));
            }
            UseTree::Rename(renamed) => {
                self.named.push((renamed.rename.to_string(), with(&renamed.ident)));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) && !matches!(item, Item::Mod(_)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.add(&[], &item.tree);
        }
    }
}

/// Every path in the code of a module.
#[derive(Default)]
struct Paths {
    found: BTreeSet<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) && !matches!(item, Item::Mod(_)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut uses = Uses::default();
        uses.visit_item_use(item);
        self.found.extend(uses.named.into_iter().map(|(_, path)| path));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.found.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        let scan = |input: syn::parse::ParseStream| {
            input.step(|cursor| {
                let mut rest = *cursor;
                self.scan(rest);
                while let Some((_, next)) = rest.token_tree() {
                    rest = next;
                }
                Ok(((), rest))
            })
        };
        call.parse_body_with(scan).unwrap();
    }
}

impl Paths {
    /// Collects everything that looks like a path from the tokens of a macro's call or rules.
    fn scan(&mut self, mut cursor: Cursor) {
        while !cursor.eof() {
            if let Some((inside, _, _, next)) = cursor.any_group() {
                self.scan(inside);
                cursor = next;
            } else if let Some((first, mut next)) = cursor.ident() {
                let mut path = vec![first.to_string()];
                while let Some((segment, after)) = next_segment(next) {
                    path.push(segment);
                    next = after;
                }
                self.found.insert(path);
                cursor = next;
            } else if let Some((_, next)) = cursor.token_tree() {
                cursor = next;
            }
        }
    }
}

fn next_segment(cursor: Cursor<'_>) -> Option<(String, Cursor<'_>)> {
    let (first, next) = cursor.punct()?;
    let (second, next) = next.punct()?;
    let (name, next) = next.ident()?;
    (first.as_char() == ':' && second.as_char() == ':').then(|| (name.to_string(), next))
}
