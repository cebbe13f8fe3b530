//! Which crates may import which. A new arrow changes the architecture, so decide on it before you add it.
//! `layout/` checks imports among the files of a crate.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// Each crate of the workspace, and the ones it may import.
const ARROWS: &[(&str, &[&str])] = &[
    ("qvpn-types", &[]),
    ("qvpn-secret", &[]),
    ("qvpn-identity", &["qvpn-secret"]),
    ("qvpn-audit", &["qvpn-secret"]),
    ("qvpn-proto", &["qvpn-types", "qvpn-secret", "qvpn-identity"]),
    ("qvpn-dataplane", &["qvpn-types", "qvpn-secret"]),
    ("qvpn-net", &["qvpn-types", "qvpn-api"]),
    ("kms-client", &["qvpn-types", "qvpn-secret", "qvpn-api"]),
    ("qvpn-api", &["qvpn-types", "qvpn-identity"]),
    (
        "qvpn-daemon",
        &[
            "qvpn-types",
            "qvpn-secret",
            "qvpn-identity",
            "qvpn-proto",
            "qvpn-dataplane",
            "qvpn-net",
            "kms-client",
            "qvpn-api",
            "qvpn-audit",
        ],
    ),
    (
        "qvpn-ctl",
        &["qvpn-audit", "qvpn-types", "qvpn-api", "qvpn-identity", "qvpn-secret", "qvpn-net", "kms-client"],
    ),
    ("kme-sim", &[]),
    // The libraries are for the sites that tests play (`TestSite`), and for the types of secrets.
    (
        "tests",
        &[
            "qvpn-types",
            "qvpn-api",
            "qvpn-audit",
            "qvpn-identity",
            "qvpn-proto",
            "qvpn-secret",
            "qvpn-dataplane",
            "kms-client",
        ],
    ),
    // It uses the lab of `tests`.
    ("benches", &["qvpn-types", "qvpn-dataplane", "qvpn-secret", "tests"]),
];

/// Imports that contradict the arrows, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "kme-sim",
        "qvpn-secret",
        "keys are erased there too; it has nothing of ETSI 014, so the two implementations of that stay \
         independent",
    ),
    (
        "qvpn-proto",
        "qvpn-dataplane",
        "only its simulator, a test, which seals and opens packets with the real sessions",
    ),
];

/// Crates whose decisions must not depend on an async runtime or TLS, including all their dependencies.
const PURE: &[&str] =
    &["qvpn-types", "qvpn-secret", "qvpn-audit", "qvpn-identity", "qvpn-proto", "qvpn-dataplane"];
const IMPURE: &[&str] = &["tokio", "async-std", "smol", "rustls", "hyper", "rtnetlink"];

/// A feature of qvpn-dataplane that only `benches` may enable. qvpn-daemon does not compile with it.
const NULL_CIPHER: &str = "bench-null-cipher";

#[test]
fn crates_import_only_along_the_arrows() {
    let imports = workspace_imports(&metadata());
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let present: BTreeSet<&str> = imports.keys().map(String::as_str).collect();
    assert_eq!(present, known, "a crate was added or removed: change the architecture and ARROWS");
    assert_eq!(violations(&imports), [""; 0]);
    for (from, to, _) in EXCEPTIONS {
        assert!(imports[*from].contains(*to), "the exception {from} -> {to} is no longer needed: remove it");
    }
}

#[test]
fn an_import_against_the_arrows_is_found() {
    let with = |from: &str, to: &str| BTreeMap::from([(from.to_owned(), BTreeSet::from([to.to_owned()]))]);
    assert_eq!(violations(&with("kme-sim", "kms-client")), ["kme-sim must not import kms-client"]);
    assert_eq!(violations(&with("qvpn-proto", "qvpn-api")), ["qvpn-proto must not import qvpn-api"]);
    assert_eq!(violations(&with("newcomer", "qvpn-api")), ["newcomer must not import qvpn-api"]);
    assert_eq!(violations(&with("qvpn-ctl", "kms-client")), [""; 0]);
}

#[test]
fn pure_crates_depend_on_no_runtime() {
    let metadata = metadata();
    for name in PURE {
        let reached = reached(&metadata, name);
        let impure: Vec<&str> = IMPURE.iter().copied().filter(|i| reached.contains(*i)).collect();
        assert!(impure.is_empty(), "{name} depends on {impure:?} (`cargo tree -p {name} -i {}`)", impure[0]);
    }
    let daemon = reached(&metadata, "kms-client");
    assert!(daemon.contains("tokio") && daemon.contains("rustls"), "the search itself works: {daemon:?}");
}

#[test]
fn the_null_cipher_of_the_benchmarks_is_in_no_default_build() {
    let with_null = |metadata: &Metadata| {
        let resolve = metadata.resolve.as_ref().unwrap();
        let dataplane =
            metadata.workspace_packages().into_iter().find(|p| p.name == "qvpn-dataplane").unwrap();
        let node = resolve.nodes.iter().find(|node| node.id == dataplane.id).unwrap();
        node.features.iter().any(|feature| feature.as_str() == NULL_CIPHER)
    };
    assert!(
        !with_null(&metadata()),
        "cargo unifies features: `cargo build --workspace` would enable it for the daemon"
    );
    let all = MetadataCommand::new()
        .features(cargo_metadata::CargoOpt::AllFeatures)
        .other_options(["--locked".to_owned()])
        .exec()
        .unwrap();
    assert!(with_null(&all), "the search itself works");
    for package in all.workspace_packages().iter().filter(|p| p.name != "benches") {
        let asks = |feature: &String| feature.contains(NULL_CIPHER);
        assert!(!package.features.values().flatten().any(asks), "a feature of {} has it", package.name);
        assert!(
            !package.dependencies.iter().flat_map(|d| &d.features).any(asks),
            "{} enables it",
            package.name
        );
    }
}

fn metadata() -> Metadata {
    MetadataCommand::new().other_options(["--locked".to_owned()]).exec().unwrap()
}

/// Returns the direct imports among the workspace's crates, of every kind (normal, dev, build).
fn workspace_imports(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata.workspace_packages();
    let members: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    packages
        .iter()
        .map(|package| {
            let imports = package.dependencies.iter().map(|d| d.name.clone());
            (package.name.to_string(), imports.filter(|name| members.contains(name.as_str())).collect())
        })
        .collect()
}

fn violations(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for (from, to) in
        imports.iter().flat_map(|(from, list)| list.iter().map(move |to| (from.as_str(), to.as_str())))
    {
        let allowed = ARROWS.iter().any(|(name, list)| *name == from && list.contains(&to));
        let excepted = EXCEPTIONS.iter().any(|(f, t, _)| (*f, *t) == (from, to));
        if !allowed && !excepted {
            found.push(format!("{from} must not import {to}"));
        }
    }
    found
}

/// Returns the names of all crates on which `name` depends, directly or indirectly, without dev-dependencies.
fn reached(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().unwrap();
    let start = metadata.workspace_packages().into_iter().find(|p| p.name.as_str() == name).unwrap();
    let mut queue: Vec<&PackageId> = vec![&start.id];
    let mut seen: BTreeSet<&PackageId> = BTreeSet::new();
    while let Some(id) = queue.pop() {
        if seen.insert(id) {
            let node = resolve.nodes.iter().find(|node| node.id == *id).unwrap();
            let used = |dep: &&cargo_metadata::NodeDep| {
                dep.dep_kinds.iter().any(|kind| matches!(kind.kind, DependencyKind::Normal))
            };
            queue.extend(node.deps.iter().filter(used).map(|dep| &dep.pkg));
        }
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}
