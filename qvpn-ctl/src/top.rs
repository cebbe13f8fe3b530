//! `top`: the state of an interface, live. One screen of 80 columns and 24 lines has what matters; more peers scroll.

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
use crate::client::Client;
use crate::error::CtlError;
use crate::output::Paint;

/// Between two questions to the daemon.
const PERIOD: Duration = Duration::from_secs(1);

pub(crate) fn top(dir: &Path, interface: &str) -> Result<(), CtlError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CtlError::NoTerminal);
    }
    // The first answer comes before the screen is taken, so that a missing daemon is one line as everywhere.
    let first = ask(dir, interface)?;
    let mut screen = Screen::new(interface, Paint::for_stdout().colour);
    screen.now(Sample { at: Instant::now(), status: first });
    let mut terminal = ratatui::try_init().map_err(CtlError::Output)?;
    let result = live(&mut terminal, &mut screen, dir, interface);
    ratatui::restore();
    result
}

fn live(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    dir: &Path,
    interface: &str,
) -> Result<(), CtlError> {
    let mut next = Instant::now() + PERIOD;
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
                    KeyCode::Down | KeyCode::Char('j') => screen.go(1),
                    KeyCode::Up | KeyCode::Char('k') => screen.go(-1),
                    KeyCode::PageDown => screen.go(10),
                    KeyCode::PageUp => screen.go(-10),
                    _ => {}
                }
            }
            continue;
        }
        next = Instant::now() + PERIOD;
        match ask(dir, interface) {
            Ok(status) => screen.now(Sample { at: Instant::now(), status }),
            // It may come back; what was seen last stays on the screen.
            Err(error) => screen.trouble(error.to_string()),
        }
    }
}

fn ask(dir: &Path, interface: &str) -> Result<InterfaceStatus, CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::Show)? {
        Reply::Show(mut status) if !status.interfaces.is_empty() => Ok(status.interfaces.remove(0)),
        _ => Err(client.unexpected()),
    }
}
