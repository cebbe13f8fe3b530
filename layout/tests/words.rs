//! No file uses a word of `scripts/words.txt`, the list of names and phrases that the project's glossary
//! replaced.

use qvpn_layout::words::{Words, places};
use qvpn_layout::{root, texts};

/// Files that are not searched: the list itself, texts of others, records of the past, and data.
const EXEMPT: &[&str] = &[
    "scripts/words.txt",
    "layout/tests/words.rs",
    "LICENSE-",
    "docs/decisions/000",
    "docs/decisions/001",
    "docs/decisions/0020",
    "docs/evidence/20",
    "docs/evidence/mutations.md",
    "fuzz/seeds/",
];
const ENDINGS: &[&str] = &[".lock", ".svg"];

#[test]
fn no_file_uses_a_word_that_the_glossary_replaced() {
    let words = Words::parse(&std::fs::read_to_string(root().join("scripts/words.txt")).unwrap());
    let mut texts = texts();
    texts.retain(|name, _| {
        !EXEMPT.iter().any(|exempt| name.starts_with(exempt))
            && !ENDINGS.iter().any(|end| name.ends_with(end))
    });
    assert!(texts.len() > 300, "the files are found: {}", texts.len());
    assert!(!words.enforced.is_empty(), "the words are read: {words:?}");
    let find = |list: &[String]| -> Vec<String> {
        let of = |(name, text): (&String, &String)| {
            let line = |(line, word): (usize, String)| format!("{name}:{line}: {word}");
            places(text, list).into_iter().map(line).collect::<Vec<_>>()
        };
        texts.iter().flat_map(of).collect()
    };
    for place in find(&words.pending) {
        println!("pending: {place}");
    }
    let found = find(&words.enforced);
    assert!(found.is_empty(), "words of scripts/words.txt:\n{}", found.join("\n"));
}

#[test]
fn words_are_found_across_lines_and_in_names() {
    let list = ["folder", "so many", "Door", "MOST"].map(str::to_owned);
    let lines = |text: &str| places(text, &list).into_iter().map(|(line, _)| line).collect::<Vec<_>>();
    assert_eq!(lines("a folder\nThe Folder, the_folder"), [1, 2]);
    assert_eq!(lines("one\n/// takes so\n/// many seconds"), [2]);
    assert_eq!(lines("Door DoorError KmeDoor\nmost MOST"), [1, 2]);
    assert_eq!(lines("folders foldername doors Doors door ALMOST MOSTLY almost"), [0usize; 0]);
    let words = Words::parse("# a comment\n\nfolder\n# pending\nso many\n");
    assert_eq!((words.enforced, words.pending), (vec!["folder".to_owned()], vec!["so many".to_owned()]));
}
