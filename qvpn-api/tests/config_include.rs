//! Configs with `include`: peers in files of their own.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};

use qvpn_api::Config;
use qvpn_api::config::{ConfigFiles, PeerEdit};
use qvpn_identity::SecretIdentity;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

fn peer(n: u8) -> String {
    let key = SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(n.into()));
    let key = key.public();
    format!(
        "# Site {n}.\n[[peer]]\nname = \"site-{n}\"\npublic_key = \"{key}\"\nqkd = \"off\"\n\
         allowed_ips = [\"10.{n}.0.0/16\"]\n"
    )
}

/// A config with these included files.
fn config(files: &[(&str, String)]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("qvpn0.d")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join("qvpn0.d").join(name), text).unwrap();
    }
    let path = dir.path().join("qvpn0.toml");
    let main = "[interface]\nprivate_key_file = \"k\"\ninclude = \"qvpn0.d/*.toml\"\n\n[access]\n".to_owned();
    fs::write(&path, main + &peer(200)).unwrap();
    (dir, path)
}

fn refused(path: &Path) -> String {
    Config::load(path).map(drop).unwrap_err().to_string()
}

#[test]
fn a_hundred_files_are_read_in_their_order_and_one_broken_refuses_all_with_its_place() {
    let files: Vec<(String, String)> = (0..100).map(|n| (format!("{n:03}.toml"), peer(n))).collect();
    let files: Vec<(&str, String)> = files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let (dir, path) = config(&files);
    fs::write(dir.path().join("qvpn0.d/notes.txt"), "not a config").unwrap();
    fs::write(dir.path().join("qvpn0.d/.hidden.toml"), "not a config").unwrap();
    let config = Config::load(&path).unwrap();
    let names: Vec<&str> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!((names.len(), names[0], names[1], names[100]), (101, "site-200", "site-0", "site-99"));
    assert_eq!(config.include_dir().unwrap(), dir.path().join("qvpn0.d"));

    let file = dir.path().join("qvpn0.d/042.toml");
    let shown = file.display();
    fs::write(&file, peer(42).replace("qkd", "qdk")).unwrap();
    let expected = format!("{shown}:5:1: [[peer]] \"site-42\" has no key `qdk`");
    assert!(refused(&path).contains(&expected), "{}", refused(&path));
    fs::write(&file, "[[peer\n").unwrap();
    assert!(refused(&path).starts_with(&format!("{shown}:1:7: this is not TOML")), "{}", refused(&path));
    fs::write(&file, "[interface]\nlanes = 4\n").unwrap();
    let expected = format!("{shown}:1:2: `interface` is not for an included file");
    assert!(refused(&path).starts_with(&expected), "{}", refused(&path));
    fs::write(&file, peer(41)).unwrap();
    let error = refused(&path);
    let first = dir.path().join("qvpn0.d/041.toml");
    assert!(
        error.contains(&format!("{shown}:3:8: a peer named \"site-41\" is in line 3 of {}", first.display()))
    );
    // Even then the block covers what can be read.
    let partial = Config::load_partial(&path);
    assert!(partial.interface.is_some() && partial.allowed_ips.len() == 101);
    fs::remove_dir_all(dir.path().join("qvpn0.d")).unwrap();
    assert!(refused(&path).contains("qvpn0.d of `include` can't be read"), "{}", refused(&path));
}

#[test]
fn a_pattern_names_a_directory() {
    for bad in ["*.toml", "a/b", "a/*", "*/x/*.toml", "", "/*.toml"] {
        let text = format!("[interface]\nprivate_key_file = \"k\"\ninclude = \"{bad}\"\n");
        let error = Config::parse(Path::new("/etc/qvpn/qvpn0.toml"), &text).unwrap_err().to_string();
        assert!(error.contains(":3:11: `include` is "), "{bad}: {error}");
    }
}

#[test]
fn a_change_of_a_peer_goes_to_its_file_and_a_new_peer_gets_one() {
    let (dir, path) = config(&[("a.toml", peer(1)), ("b.toml", peer(2))]);
    let before = ConfigFiles::read(&path).unwrap();
    let changed = |edit: &PeerEdit| {
        let mut after = before.clone();
        after.edit(edit).unwrap();
        after.parse().unwrap();
        let changed = after.changed_since(&before);
        changed
            .into_iter()
            .map(|(file, text)| (file.strip_prefix(dir.path()).unwrap().to_owned(), text))
            .collect()
    };
    let set = |peer: &str| {
        let (peer, settings) = (peer.to_owned(), "suite = \"aes256gcm\"\n".to_owned());
        PeerEdit::Set { peer, settings, unset: Vec::new() }
    };
    let all: Vec<(PathBuf, String)> = changed(&set("site-2"));
    assert_eq!(all, [(PathBuf::from("qvpn0.d/b.toml"), peer(2) + "suite = \"aes256gcm\"\n")]);
    let all: Vec<(PathBuf, String)> = changed(&set("site-200"));
    assert!(all.len() == 1 && all[0].0 == Path::new("qvpn0.toml"));
    let settings = peer(7).split_once("[[peer]]\n").unwrap().1.replace("site-7", "new-site-7");
    let all: Vec<(PathBuf, String)> = changed(&PeerEdit::Add { settings });
    assert!(all.len() == 1 && all[0].0 == Path::new("qvpn0.d/new-site-7.toml"), "{all:?}");
    let all: Vec<(PathBuf, String)> = changed(&PeerEdit::Remove { peer: "site-1".into() });
    assert!(all.len() == 1 && all[0].0 == Path::new("qvpn0.d/a.toml"), "{all:?}");
    assert!(before.clone().edit(&set("site-9")).is_err());
}

#[test]
fn the_text_in_force_stands_alone() {
    let (_dir, path) = config(&[("a.toml", peer(1))]);
    let config = Config::load(&path).unwrap();
    let alone = config.self_contained_text();
    fs::write(&path, &alone).unwrap();
    let again = Config::load(&path).unwrap();
    assert!(again.peers == config.peers && again.interface.include.is_none());
    assert_ne!(again.hash(), config.hash());
    assert_eq!(again.hash().len(), 64);
}
