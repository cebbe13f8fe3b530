//! `top`: the live state of an interface. It fits a screen of 80 columns and 24 lines; more peers scroll.

mod screen;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use qvpn_api::control::{Reply, Request};
use qvpn_api::status::InterfaceStatus;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use self::screen::{Sample, Screen};
use crate::cli::PeerFilter;
use crate::client::Client;
use crate::error::CtlError;
use crate::output::Paint;
use crate::show;

/// The time between two requests to the daemon.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn top(dir: &Path, interface: &str, filter: &PeerFilter) -> Result<(), CtlError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CtlError::NoTerminal);
    }
    // The first request comes before the screen is switched, so that a missing daemon is reported in one
    // line.
    let first = ask(dir, interface, filter)?;
    let mut screen = Screen::new(interface, Paint::for_stdout().colour);
    screen.update(Sample { at: Instant::now(), status: first });
    let mut terminal = ratatui::try_init().map_err(CtlError::Output)?;
    let result = live(&mut terminal, &mut screen, dir, interface, filter);
    ratatui::restore();
    result
}

fn live(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    dir: &Path,
    interface: &str,
    filter: &PeerFilter,
) -> Result<(), CtlError> {
    let mut next = Instant::now() + REFRESH_INTERVAL;
    loop {
        terminal.draw(|frame| screen.draw(frame)).map_err(CtlError::Output)?;
        let left = next.saturating_duration_since(Instant::now());
        if event::poll(left).map_err(CtlError::Output)? {
            if let Event::Key(key) = event::read().map_err(CtlError::Output)?
                && key.kind == KeyEventKind::Press
            {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if control => return Ok(()),
                    KeyCode::Down | KeyCode::Char('j') => screen.move_selection(1),
                    KeyCode::Up | KeyCode::Char('k') => screen.move_selection(-1),
                    KeyCode::PageDown => screen.move_selection(10),
                    KeyCode::PageUp => screen.move_selection(-10),
                    _ => {}
                }
            }
            continue;
        }
        next = Instant::now() + REFRESH_INTERVAL;
        match ask(dir, interface, filter) {
            Ok(status) => screen.update(Sample { at: Instant::now(), status }),
            // The daemon may return; the last state stays on the screen.
            Err(error) => screen.show_error(error.to_string()),
        }
    }
}

fn ask(dir: &Path, interface: &str, filter: &PeerFilter) -> Result<InterfaceStatus, CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::Show)? {
        Reply::Show(mut status) if !status.interfaces.is_empty() => {
            let mut interface = status.interfaces.remove(0);
            show::filter(&mut interface, filter.down, filter.peer.as_deref())?;
            show::sort_by_state(&mut interface);
            Ok(interface)
        }
        _ => Err(client.unexpected()),
    }
}
