//! `events`: prints the latest events of a daemon, all or those that a filter accepts.

use std::path::Path;

use qvpn_api::control::{Reply, Request};
use qvpn_api::events::Event;

use crate::cli::{EventFilter, EventLevel};
use crate::client::Client;
use crate::error::CtlError;
use crate::output::{self, Paint, Tone};
use crate::units::count;

pub(crate) fn events(
    dir: &Path,
    interface: &str,
    filter: &EventFilter,
    follow: bool,
    json: bool,
) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    client.send(&Request::Events { follow })?;
    if follow {
        client.wait_without_limit()?;
    }
    let paint = Paint::for_stdout();
    loop {
        match client.next()? {
            Some(Reply::Event(event)) if !wanted(&event, filter) => {}
            Some(Reply::Event(event)) => output::print(&line(&event, json, paint)?)?,
            Some(Reply::EventsEnd { missed }) => {
                if missed > 0 {
                    output::note(&format!(
                        "{} no longer kept; see the journal",
                        count(missed, "older event")
                    ));
                }
                return Ok(());
            }
            Some(_) => return Err(client.unexpected()),
            None => return Err(CtlError::Cut { interface: interface.to_owned() }),
        }
    }
}

fn line(event: &Event, json: bool, paint: Paint) -> Result<String, CtlError> {
    if json {
        let text = serde_json::to_string(event).map_err(|e| CtlError::Output(e.into()))?;
        return Ok(format!("{text}\n"));
    }
    let tone = if event.kind.is_warning() { Tone::Warn } else { Tone::Plain };
    Ok(format!("{}\n", paint.text(tone, &event.to_string())))
}

/// Whether the filter accepts an event.
fn wanted(event: &Event, filter: &EventFilter) -> bool {
    let name = event.kind.name();
    let of_kind = |kind: &String| {
        name == kind || name.strip_prefix(kind.as_str()).is_some_and(|rest| rest.starts_with('.'))
    };
    let of_peer =
        |peer: &String| event.kind.fields().iter().any(|(key, value)| *key == "peer" && value == peer);
    filter.peer.as_ref().is_none_or(of_peer)
        && (filter.kind.is_empty() || filter.kind.iter().any(of_kind))
        && (filter.level == EventLevel::Info || event.kind.is_warning())
        && filter.since.is_none_or(|since| event.time >= since)
}
