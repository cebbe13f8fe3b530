//! The source tree: files of a crate form no cycle of imports, and no file, function or line is too long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use qvpn_layout::imports::{Import, cycles, imports, in_cycles};
use qvpn_layout::{root, targets, texts};

/// Pairs of files whose import closes a cycle today, as a count for each crate. Lower a number when cycles
/// go.
const KNOWN_CYCLES: &[(&str, usize)] = &[];

/// Files that are longer than `MAX_LINES` today.
const KNOWN_LONG: &[&str] = &[];
const MAX_LINES: usize = 500;

/// The longest function outside of tests, in lines with its signature.
const MAX_FUNCTION_LINES: usize = 85;

/// The longest line of Rust and shell, in characters; rustfmt leaves strings and comments as they are.
const MAX_COLUMNS: usize = 110;

#[test]
fn no_files_of_a_crate_import_each_other() {
    let manifest = |name: &String| name.strip_suffix("/Cargo.toml").map(str::to_owned);
    let crates: Vec<String> = texts().keys().filter_map(manifest).collect();
    let (mut report, mut new, mut files) = (String::new(), Vec::new(), 0);
    for name in &crates {
        let dir = root().join(name);
        let all = targets(&dir).iter().flat_map(|target| imports(target)).collect();
        let all = relative(all, &dir);
        files += all.iter().map(|import| &import.from).collect::<BTreeSet<_>>().len();
        let closing = in_cycles(&all);
        let pairs: BTreeSet<_> = closing.iter().map(|import| (&import.from, &import.to)).collect();
        let known = KNOWN_CYCLES.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count);
        if pairs.len().max(known) > 0 {
            report += &format!("{name}: {} imports close cycles, {known} are known\n", pairs.len());
        }
        report += &cycle_report(&closing, &cycles(&all));
        if pairs.len() > known {
            new.push(name);
        }
    }
    println!("{report}");
    assert!(
        crates.len() > 12 && files > 150,
        "the sources are found: {crates:?}, {files} files with imports"
    );
    assert!(new.is_empty(), "files of {new:?} import each other:\n{report}");
}

#[test]
fn no_source_file_is_too_long() {
    let sources: Vec<(String, usize)> = texts()
        .into_iter()
        .filter(|(name, _)| name.ends_with(".rs") && !is_test(name))
        .map(|(name, text)| (name, text.lines().count()))
        .collect();
    assert!(sources.len() > 200, "the sources are found: {}", sources.len());
    let long = |(name, lines): &&(String, usize)| *lines > MAX_LINES && !KNOWN_LONG.contains(&name.as_str());
    let long: Vec<_> = sources.iter().filter(long).collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:#?}");
}

#[test]
fn no_function_is_too_long() {
    let (mut functions, mut long) = (0, Vec::new());
    for (name, text) in texts().iter().filter(|(name, _)| name.ends_with(".rs") && !is_test(name)) {
        for (line, lines) in function_lines(text) {
            functions += 1;
            if lines > MAX_FUNCTION_LINES {
                long.push(format!("{name}:{line}: {lines} lines"));
            }
        }
    }
    assert!(functions > 3000, "functions are found: {functions}");
    assert!(long.is_empty(), "functions of more than {MAX_FUNCTION_LINES} lines: {long:#?}");
}

/// The first line of each function in a formatted source file, and its number of lines, up to the file's
/// module of tests.
fn function_lines(text: &str) -> Vec<(usize, usize)> {
    let all: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let is_function = |line: &str| {
        let words = line.split_whitespace().take_while(|word| !word.contains("//"));
        let mut words = words.skip_while(|word| {
            word.starts_with("pub")
                || matches!(*word, "in" | "const" | "async" | "unsafe" | "extern" | "\"C\"")
        });
        words.next() == Some("fn")
    };
    let lines_of = |start: usize| {
        let indent = all[start].len() - all[start].trim_start().len();
        let end = format!("{}}}", &all[start][..indent]);
        all[start..].iter().position(|line| *line == end).map_or(1, |after| after + 1)
    };
    // A function on one line has no separate line with its closing brace.
    let opens = |line: &str| !line.ends_with('}') && !line.ends_with(';');
    (0..all.len())
        .filter(|i| is_function(all[*i]))
        .map(|i| (i + 1, if opens(all[i]) { lines_of(i) } else { 1 }))
        .collect()
}

#[test]
fn the_lines_of_functions_are_counted() {
    let text = "fn one() {}\nimpl A {\n    pub(crate) async fn two(\n        x: u8,\n    ) {\n        \
                if x {\n        }\n    }\n}\n#[cfg(test)]\nmod tests {\n    fn not() {\n    }\n}\n";
    assert_eq!(function_lines(text), [(1, 1), (3, 6)]);
}

#[test]
fn no_line_of_code_is_too_long() {
    let is_code = |name: &String| name.ends_with(".rs") || name.ends_with(".sh");
    let texts: BTreeMap<String, String> = texts().into_iter().filter(|(name, _)| is_code(name)).collect();
    assert!(texts.len() > 300, "the sources are found: {}", texts.len());
    let long: Vec<String> = texts
        .iter()
        .flat_map(|(name, text)| long_lines(text).map(move |line| format!("{name}:{line}")))
        .collect();
    assert!(long.is_empty(), "lines of more than {MAX_COLUMNS} characters: {long:#?}");
}

/// Returns the numbers of the lines that are too long.
fn long_lines(text: &str) -> impl Iterator<Item = usize> {
    (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > MAX_COLUMNS).map(|(number, _)| number)
}

#[test]
fn a_long_line_is_found_by_its_characters() {
    let (fits, long) = ("ü".repeat(MAX_COLUMNS), "x".repeat(MAX_COLUMNS + 1));
    assert_eq!(long_lines(&format!("{fits}\n{long}\n\n{long}")).collect::<Vec<_>>(), [2, 4]);
}

fn is_test(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.split('/').nth(1) == Some("tests")
}

#[test]
fn cycles_of_imports_are_found_in_a_made_up_crate() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("made_up_crate");
    let _ = fs::remove_dir_all(&dir);
    let write = |file: &str, text: &str| {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let found = || cycles(&relative(imports(&dir.join("lib.rs")), &dir));
    // The parent only declares its children and re-exports their items; tests import what they like.
    write("lib.rs", "mod a; mod b; mod c; pub use a::A; pub use c::*;");
    write("a.rs", "pub mod deep; pub struct A; #[cfg(test)] mod tests { use crate::b::B; }");
    write("a/deep.rs", "pub fn f() { let _ = String::new(); } pub const LIMIT: u8 = 1;");
    write("b.rs", "use crate::A; pub struct B(A);");
    write("c.rs", "pub struct C; fn f() { let _ = crate::b::B; }");
    assert_eq!(found(), BTreeSet::new());
    // Two files, the second by a path inside a macro.
    write("a/deep.rs", "pub fn f() { println!(\"{}\", crate::c::C) }");
    write("c.rs", "use crate::a::deep; pub struct C; fn f() { deep::f() }");
    assert_eq!(found(), BTreeSet::from(["a/deep.rs -> c.rs -> a/deep.rs".to_owned()]));
    // Parent and child, through `super`.
    write("c.rs", "pub struct C;");
    write("a/deep.rs", "use super::A; pub struct Deep(A);");
    write("a.rs", "pub mod deep; pub struct A; fn f() -> deep::Deep { todo!() }");
    assert_eq!(found(), BTreeSet::from(["a/deep.rs -> a.rs -> a/deep.rs".to_owned()]));
    // Three files, through a re-export by the root and a glob.
    write("a.rs", "use crate::C; pub struct A(C);");
    write("c.rs", "use crate::b::*; pub struct C(Option<Box<B>>);");
    assert_eq!(found(), BTreeSet::from(["a.rs -> c.rs -> b.rs -> a.rs".to_owned()]));
}

fn relative(imports: BTreeSet<Import>, dir: &Path) -> BTreeSet<Import> {
    let short = |path: PathBuf| path.strip_prefix(dir).map(Path::to_owned).unwrap_or(path);
    imports
        .into_iter()
        .map(|import| Import { from: short(import.from), to: short(import.to), path: import.path })
        .collect()
}

fn cycle_report(closing: &BTreeSet<Import>, cycles: &BTreeSet<String>) -> String {
    let mut names: BTreeMap<(&Path, &Path), Vec<&str>> = BTreeMap::new();
    for import in closing {
        names.entry((&import.from, &import.to)).or_default().push(&import.path);
    }
    let cycles = cycles.iter().map(|cycle| format!("  cycle {cycle}\n"));
    let imports = names.iter().map(|((from, to), names)| {
        format!("  {} imports {}: {}\n", from.display(), to.display(), names[..names.len().min(4)].join(", "))
    });
    cycles.chain(imports).collect()
}
