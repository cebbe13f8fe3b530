//! A file of keys: both sites get the same key, it is wiped on the disk before it is used, and unsuitable
//! files are refused.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kms_client::KmsErrorKind as K;
use kms_client::{Api, KeyFile, KeySource, KmsError, Violation};
use qvpn_types::{KeyId, SaeId};

const KEYS: &str = "# for SITE-A and SITE-B
0001 q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=
  0002\t/////wAAAAD/////AAAAAP////8AAAAA/////wAAAAE=

0003 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn sae(id: &str) -> SaeId {
    SaeId::new(id).unwrap()
}

fn ids(names: &[&str]) -> Vec<KeyId> {
    names.iter().map(|n| KeyId::new(*n).unwrap()).collect()
}

async fn new_error(file: &KeyFile) -> KmsError {
    let error = file.fetch_new(&sae("SITE-B"), 1, 256).await.err().expect("an error");
    assert!(error.to_string().contains("KME disk: ") && error.advice().len() > 20, "{error}");
    assert!(!format!("{error:?}").contains("q83v"), "{error:?}");
    error
}

#[tokio::test]
async fn each_key_is_given_once_at_each_site_and_wiped_before() {
    let dir = tempfile::tempdir().unwrap();
    let (path_a, path_b) = (dir.path().join("a.keys"), dir.path().join("b.keys"));
    write(&path_a, KEYS, 0o600);
    write(&path_b, KEYS, 0o600);
    let (a, b) = (KeyFile::new("disk", &path_a), KeyFile::new("disk", &path_b));
    assert_eq!((a.api(), a.url()), (Api::File, format!("file:{}", path_a.display()).as_str()));
    let link = a.link(&sae("SITE-B")).await.unwrap();
    assert_eq!((link.stored_key_count, link.max_key_per_request), (Some(3), Some(1)));

    for (n, name) in ["0001", "0002", "0003"].into_iter().enumerate() {
        let mut keys = a.fetch_new(&sae("SITE-B"), 5, 256).await.unwrap();
        let key = keys.pop().unwrap();
        assert!(keys.is_empty());
        assert_eq!((key.id.as_str(), key.api, key.secret.len()), (name, Api::File, 32));
        let text = std::fs::read_to_string(&path_a).unwrap();
        assert!(!text.contains(name), "wiped on the disk: {text}");
        assert_eq!(text.len(), KEYS.len(), "in its place");
        assert_eq!(
            a.link(&sae("SITE-B")).await.unwrap().stored_key_count,
            Some(2 - u64::try_from(n).unwrap())
        );

        let other =
            b.fetch_by_ids(&sae("SITE-A"), std::slice::from_ref(&key.id)).await.unwrap().pop().unwrap();
        assert!(other.secret.ct_eq(key.secret.expose()));
        assert_eq!(other.key_ref(), key.key_ref());
        assert!(!std::fs::read_to_string(&path_b).unwrap().contains(name));
        let again = b.fetch_by_ids(&sae("SITE-A"), std::slice::from_ref(&key.id)).await.err().unwrap();
        assert_eq!(again.kind(), K::KeyNotFound);
    }
    assert_eq!(new_error(&a).await.kind(), K::Exhausted);
    assert!(std::fs::read_to_string(&path_a).unwrap().starts_with("# for SITE-A"), "what is no key stays");
}

#[tokio::test]
async fn the_other_site_takes_keys_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.keys");
    write(&path, KEYS, 0o600);
    let b = KeyFile::new("disk", &path);
    let keys = b.fetch_by_ids(&sae("SITE-A"), &ids(&["0003", "0001", "nope"])).await.unwrap();
    assert_eq!(keys.iter().map(|k| k.id.as_str()).collect::<Vec<_>>(), ["0001", "0003"]);
    assert_eq!(b.link(&sae("SITE-A")).await.unwrap().stored_key_count, Some(1));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_and_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.keys");
    let file = KeyFile::new("disk", &path);
    assert_eq!(new_error(&file).await.kind(), K::Config, "not there");
    for mode in [0o640, 0o604, 0o660, 0o644, 0o610] {
        write(&path, KEYS, mode);
        let error = new_error(&file).await;
        assert_eq!(error.kind(), K::Config);
        assert!(error.advice().contains("chmod 0600"), "{}", error.advice());
    }
    write(&path, KEYS, 0o600);
    std::fs::hard_link(&path, dir.path().join("copy")).unwrap();
    assert!(new_error(&file).await.to_string().contains("2 names"));
    std::fs::remove_file(dir.path().join("copy")).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(new_error(&KeyFile::new("disk", &link)).await.kind(), K::Config);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), KEYS, "nothing was spent");

    for (text, violation) in [
        ("0001\n", Violation::KeyId),
        ("0001 q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZw==\n", Violation::KeySize),
        ("0001 q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4*=\n", Violation::KeySize),
        ("0001 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", Violation::ZeroKey),
    ] {
        write(&path, text, 0o600);
        let error = new_error(&file).await;
        assert_eq!(error.kind(), K::ProtocolViolation(violation), "{text}");
        assert!(error.to_string().contains("line 1 of"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
