use std::os::unix::fs::PermissionsExt;

use qvpn_identity::SecretIdentity;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;

fn identity(seed: u64) -> PublicIdentity {
    *SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)).public()
}

fn peers() -> PeerStates {
    let v4: SocketAddr = "203.0.113.9:51820".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::9]:4500".parse().unwrap();
    let time = Tai64n::from_unix(Duration::from_secs(1_700_000_000));
    [
        ([1; 32], PeerState { endpoint: Some(v4), initiation: Some(time) }),
        ([2; 32], PeerState { endpoint: Some(v6), initiation: None }),
        ([3; 32], PeerState { endpoint: None, initiation: Some(time) }),
    ]
    .into()
}

fn saved(dir: &Path) -> PathBuf {
    let (mut state, found) = StateFile::open(dir, "qvpn0", &identity(1));
    assert!(found.is_empty());
    state.close(peers(), Time::default());
    dir.join("qvpn0.state")
}

#[test]
fn what_was_saved_is_found_again_and_only_the_owner_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(dir.path());
    assert_eq!(StateFile::open(dir.path(), "qvpn0", &identity(1)).1, peers());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn an_unusable_file_is_named_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(dir.path());
    let text = fs::read_to_string(&path).unwrap();
    let owner = StateFile::open(dir.path(), "qvpn0", &identity(1)).0.owner;
    let why = |text: &str| parse(text, &owner).unwrap_err();
    assert!(parse(&text, &owner).is_ok());
    for cut in 0..text.len() {
        assert!(parse(&text[..cut], &owner).is_err(), "cut after {cut} bytes");
    }
    assert!(why(&text.replace("version 1", "version 2")).contains("version 2"));
    assert!(why(&text.replace("203.0.113.9", "203.0.113.")).contains("damaged"));
    assert!(why(&text.replace("end 3", "end 2")).contains("damaged"));
    assert!(why(&format!("{text}peer x y\n")).contains("damaged"));
    assert!(why("\u{0}\u{1b}[31m").contains("no state file"));
    assert!(why("").contains("no state file"));
    let other = why(&text.replace("interface qvpn0", "interface qvpn\u{1b}1"));
    assert!(other.contains("another tunnel (interface qvpn1"), "{other:?}");
    // Each of these is read as if there was no file, and replaced.
    for wrong in [&b"\xff\xfe\x00"[..], b"version 9\n", &text.as_bytes()[..40]] {
        fs::write(&path, wrong).unwrap();
        let (mut state, found) = StateFile::open(dir.path(), "qvpn0", &identity(1));
        assert!(found.is_empty());
        state.close(peers(), Time::default());
        assert_eq!(StateFile::open(dir.path(), "qvpn0", &identity(1)).1, peers());
    }
    assert!(StateFile::open(dir.path(), "qvpn0", &identity(2)).1.is_empty(), "of another identity");
    assert!(StateFile::open(dir.path(), "qvpn1", &identity(1)).1.is_empty(), "there is none");
    // One from the future is used.
    let future = text.lines().map(|line| match line.strip_prefix("saved ") {
        Some(_) => "saved 9999999999\n".to_owned(),
        None => format!("{line}\n"),
    });
    fs::write(&path, future.collect::<String>()).unwrap();
    assert_eq!(StateFile::open(dir.path(), "qvpn0", &identity(1)).1, peers());
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_tried_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let (mut state, found) = StateFile::open(&missing, "qvpn0", &identity(1));
    assert!(found.is_empty());
    let at = |seconds| Time::default() + Duration::from_secs(seconds);
    let settle = async |state: &mut StateFile, now| {
        state.poll(peers, now).await;
        while state.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            tokio::task::yield_now().await;
        }
        state.poll(peers, now).await;
    };
    settle(&mut state, at(10)).await;
    assert!(state.failed && state.saved.is_none());
    fs::create_dir(&missing).unwrap();
    settle(&mut state, at(60)).await;
    assert!(state.failed, "not before a minute has passed");
    settle(&mut state, at(71)).await;
    assert!(!state.failed && state.saved == Some(peers()));
    let modified = || fs::metadata(missing.join("qvpn0.state")).unwrap().modified().unwrap();
    let before = modified();
    settle(&mut state, at(200)).await;
    assert_eq!(modified(), before, "nothing changed, so nothing is written");
}

#[tokio::test]
async fn times_alone_are_saved_once_a_minute_and_those_ahead_of_the_clock_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let open = || StateFile::open(dir.path(), "qvpn0", &identity(1));
    let with_time = |unix: u64| {
        let initiation = Some(Tai64n::from_unix(Duration::from_secs(unix)));
        PeerStates::from([([1; 32], PeerState { endpoint: None, initiation })])
    };
    let mut state = open().0;
    let mut save = async |peers: PeerStates, seconds| {
        let now = Time::default() + Duration::from_secs(seconds);
        state.poll(|| peers, now).await;
        if let Some(writing) = state.writing.take() {
            let written = writing.await.unwrap();
            state.on_written(written, now);
        }
        open().1
    };
    let now = u64::try_from(clock::unix_seconds()).unwrap();
    assert_eq!(save(with_time(now), 10).await, with_time(now));
    assert_eq!(save(with_time(now + 1), 69).await, with_time(now));
    assert_eq!(save(with_time(now + 1), 72).await, with_time(now + 1));
    let moved = PeerStates::from([([1; 32], PeerState { endpoint: None, ..PeerState::default() })]);
    assert_eq!(save(with_time(now + 3_600), 140).await, moved, "a clock that is wrong");
}
