//! All unsafe code is counted and explained in `docs/dependencies.md`.

use std::collections::BTreeMap;

use qvpn_layout::texts;
use qvpn_layout::unsafe_code::count;

#[test]
fn all_unsafe_code_is_counted_and_has_its_reason() {
    let texts = texts();
    let sources = texts.iter().filter(|(name, _)| name.ends_with(".rs"));
    let found: BTreeMap<&str, usize> =
        sources.map(|(name, text)| (name.as_str(), count(text))).filter(|(_, count)| *count > 0).collect();
    let page = &texts["docs/dependencies.md"];
    let section = page.split("\n## Unsafe code of ours\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut known = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(|cell| cell.trim()).collect();
        assert!(cells[2].len() > 20, "{row}: what for?");
        known.insert(cells[0].trim_matches('`'), cells[1].parse().unwrap());
    }
    assert_eq!(found, known, "unsafe code (left: in the sources, right: on the page)");
}

#[test]
fn unsafe_code_is_found() {
    assert_eq!(count("fn a() { unsafe { b() } }"), 1);
    assert_eq!(
        count(
            "unsafe impl Send for X {} pub unsafe fn c() {} unsafe trait T {} unsafe extern \"C\" { fn f(); }"
        ),
        4
    );
    assert_eq!(count("fn a() { assert!(unsafe { b() }) }"), 1);
    assert_eq!(count("#![allow(unsafe_code)]\n// unsafe\nconst S: &str = \"unsafe\";"), 0);
}
