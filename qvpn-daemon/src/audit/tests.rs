use std::fs;
use std::time::SystemTime;

use qvpn_api::events::Caller;
use qvpn_api::status::KeySource;
use qvpn_audit::AuditLog;

use super::*;

fn paths(dir: &tempfile::TempDir) -> AuditPaths {
    AuditPaths::within(dir.path(), dir.path(), "qvpn0")
}

fn event(kind: EventKind) -> Event {
    Event { time: SystemTime::UNIX_EPOCH, interface: "qvpn0".to_owned(), kind }
}

fn epoch(peer: &str, sources: &[KeySource]) -> Event {
    event(EventKind::EpochActive {
        peer: peer.to_owned(),
        epoch: 7,
        sources: sources.to_vec(),
        qkd_key_id: Some("id-7".to_owned()),
        kme: Some("kme-a1".to_owned()),
    })
}

fn reverted() -> Event {
    event(EventKind::ConfigReverted { caller: Caller { by: "alice".to_owned(), uid: Some(1000) } })
}

/// The names of the recorded events.
fn recorded(paths: &AuditPaths) -> Vec<String> {
    let text = fs::read_to_string(&paths.log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| line["event"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn changes_are_recorded_and_epochs_where_their_sources_change() {
    let dir = tempfile::tempdir().unwrap();
    let (log, key) = AuditLog::set_up(paths(&dir)).unwrap();
    drop(log);
    let trail = AuditTrail::at(paths(&dir), "qvpn0", AuditEpochs::Changes).unwrap();
    let sink = trail.sink();
    let (strong, weak) = ([KeySource::Qkd, KeySource::Mlkem], [KeySource::Mlkem]);
    for (peer, sources) in
        [("b", &strong[..]), ("b", &strong), ("c", &strong), ("b", &weak), ("b", &weak), ("b", &strong)]
    {
        sink.record(&epoch(peer, sources));
    }
    trail.set_epochs(AuditEpochs::Off);
    sink.record(&epoch("b", &weak));
    trail.set_epochs(AuditEpochs::All);
    (0..2).for_each(|_| sink.record(&epoch("b", &weak)));
    sink.record(&event(EventKind::KmeUp { kme: "k".to_owned() }));
    sink.record(&reverted());
    assert_eq!(trail.status().state, "on");
    trail.stop();
    let mut expected = vec!["audit.started"];
    expected.extend(["epoch.active"; 6]);
    expected.extend(["config.reverted", "audit.stopped"]);
    assert_eq!(recorded(&paths(&dir)), expected);
    let text = fs::read_to_string(paths(&dir).log).unwrap();
    assert!(text.contains("\"qkd_key_id\":\"id-7\",\"kme\":\"kme-a1\"") && text.contains("\"uid\":1000"));
    let parts = paths(&dir).parts().unwrap();
    assert_eq!(qvpn_audit::verify(&parts, Some(&key), 0, Some(9)).unwrap().lines, 9);
}

#[test]
fn nothing_is_written_before_the_setup_and_everything_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let trail = AuditTrail::at(paths(&dir), "qvpn0", AuditEpochs::All).unwrap();
    trail.sink().record(&reverted());
    assert_eq!((trail.status().state.as_str(), trail.status().lost), ("off", 0));
    drop(AuditLog::set_up(paths(&dir)).unwrap());
    trail.sink().record(&reverted());
    trail.stop();
    let all = recorded(&paths(&dir));
    // The first record may come before or after the setup.
    assert_eq!((all[0].as_str(), all.last().unwrap().as_str()), ("audit.started", "audit.stopped"));
    assert!(all[1..all.len() - 1].iter().all(|name| name == "config.reverted") && all.len() > 2, "{all:?}");
}

#[test]
fn what_cannot_be_written_waits_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (held, _) = AuditLog::set_up(paths(&dir)).unwrap();
    let shared = Arc::<Shared>::default();
    let mut writer = Writer::new(paths(&dir), "qvpn0", AuditEpochs::All, shared.clone());
    (0..1003).for_each(|_| writer.record(&reverted()));
    let status = shared.status();
    assert_eq!((status.state.as_str(), status.lost), ("failing", 3));
    assert!(status.reason.unwrap().contains("another process writes"));
    drop(held);
    writer.tick();
    assert_eq!(shared.status().state, "on");
    let all = recorded(&paths(&dir));
    assert_eq!((all.len(), all[0].as_str(), all[1001].as_str()), (1002, "audit.started", "audit.lost"));
}

#[test]
fn a_step_of_the_clock_is_recorded_before_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    drop(AuditLog::set_up(paths(&dir)).unwrap());
    let mut writer = Writer::new(paths(&dir), "qvpn0", AuditEpochs::All, Arc::default());
    writer.record(&reverted());
    writer.clocks.0 += Duration::from_secs(3600);
    writer.record(&reverted());
    assert_eq!(
        recorded(&paths(&dir)),
        ["audit.started", "config.reverted", "audit.clock_stepped", "config.reverted"]
    );
    let text = fs::read_to_string(paths(&dir).log).unwrap();
    assert!(text.contains("\"by_s\":-3599.9") || text.contains("\"by_s\":-3600"), "{text}");
}
