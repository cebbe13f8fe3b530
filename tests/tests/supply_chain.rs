//! `docs/dependencies.md` against `Cargo.lock`: direct dependencies with their licences, and build scripts.
//! `layout/` compares the page's list of unsafe code with the sources.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand, TargetKind};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns the lines of a section of the page.
fn section(heading: &str) -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let from = page.lines().skip_while(|line| *line != heading).skip(1);
    let lines: Vec<String> = from.take_while(|line| !line.starts_with("## ")).map(str::to_owned).collect();
    assert!(!lines.is_empty(), "docs/dependencies.md has no {heading}");
    lines
}

/// Returns the rows of a section's table, without its header.
fn table(heading: &str) -> Vec<Vec<String>> {
    let rows = section(heading).into_iter().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

fn metadata() -> Metadata {
    MetadataCommand::new().other_options(["--locked".to_owned()]).exec().unwrap()
}

#[test]
fn each_direct_dependency_has_a_line_with_its_licence() {
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
    let direct: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .flat_map(|package| package.dependencies.iter().map(|dependency| dependency.name.clone()))
        // Optional dependencies that are not enabled are not in any build here.
        .filter(|name| {
            !ours.contains(name) && metadata.packages.iter().any(|p| p.name.as_str() == name.as_str())
        })
        .collect();
    let told: BTreeMap<String, Vec<String>> = table("## Why each direct dependency is trusted")
        .into_iter()
        .map(|row| (row[0].clone(), row))
        .collect();
    let names: BTreeSet<String> = told.keys().cloned().collect();
    let missing: Vec<_> = direct.difference(&names).collect();
    assert!(missing.is_empty(), "docs/dependencies.md says nothing of {missing:?}: why is it trusted?");
    let gone: Vec<_> = names.difference(&direct).collect();
    assert!(gone.is_empty(), "docs/dependencies.md still has {gone:?}");
    for (name, row) in told {
        let same = |package: &&cargo_metadata::Package| *package.name == name;
        let licences: Vec<String> = metadata
            .packages
            .iter()
            .filter(same)
            .filter_map(|package| package.license.as_ref().map(|l| l.replace('/', " OR ")))
            .collect();
        assert!(licences.contains(&row[1]), "{name} has {licences:?}, the page says {}", row[1]);
        assert!(row[3].len() >= 5, "{name}: why is it trusted?");
    }
}

#[test]
fn each_build_script_is_known_and_none_is_ours() {
    let metadata = metadata();
    let builds = |package: &cargo_metadata::Package| {
        package.targets.iter().any(|target| target.kind.contains(&TargetKind::CustomBuild))
    };
    for package in metadata.workspace_packages() {
        assert!(!builds(package), "{} has a build script", package.name);
    }
    let found: BTreeSet<String> = metadata
        .packages
        .iter()
        .filter(|package| builds(package))
        .map(|package| package.name.to_string())
        .collect();
    let text = section("## Build scripts").join(" ");
    let list = text.split("--locked`.").nth(1).unwrap_or_default();
    let told: BTreeSet<String> = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let new: Vec<_> = found.difference(&told).collect();
    assert!(
        new.is_empty(),
        "{new:?} came with build scripts: look whether they fetch, and name them on the page"
    );
    assert!(told.contains("aws-lc-sys"), "the search itself works: {told:?}");
}
