//! The content and the layout of `top`.

use std::time::Instant;

use qvpn_api::status::{InterfaceStatus, KmeState, PeerState, PeerStatus};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use crate::advice::advice;
use crate::output::{Tone, clean};
use crate::render::{summary_row, tone_of};
use crate::units::{ago, bytes, due, duration};

/// A peer from which nothing came for this long is quiet: pings are answered sooner.
const QUIET_SECONDS: f64 = 5.0;

/// The width of the key sources column: enough for the usual `qkd+mlkem+x25519+chain`.
const KEY_WIDTH: u16 = 22;

/// The status at one time.
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) status: InterfaceStatus,
}

pub(crate) struct Screen {
    interface: String,
    colour: bool,
    before: Option<Sample>,
    now: Option<Sample>,
    error: Option<String>,
    selected: usize,
}

impl Screen {
    pub(crate) fn new(interface: &str, colour: bool) -> Self {
        Self { interface: interface.to_owned(), colour, before: None, now: None, error: None, selected: 0 }
    }

    pub(crate) fn update(&mut self, sample: Sample) {
        self.before = self.now.take();
        self.now = Some(sample);
        self.error = None;
        self.move_selection(0);
    }

    /// Shows why there is no new status.
    pub(crate) fn show_error(&mut self, error: String) {
        self.error = Some(error);
    }

    /// Moves the selection down by `lines`, or up if negative.
    pub(crate) fn move_selection(&mut self, lines: isize) {
        let last = self.now.as_ref().map_or(0, |s| s.status.peers.len().saturating_sub(1));
        self.selected = self.selected.saturating_add_signed(lines).min(last);
    }

    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let Some(Sample { status, .. }) = &self.now else { return };
        let kmes = u16::try_from(status.kmes.len().min(5)).unwrap_or(5);
        let kmes = if kmes == 0 { 0 } else { kmes + 2 };
        let [title, kme_area, peer_area, detail, help] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(kmes),
            Constraint::Min(3),
            Constraint::Length(5),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.title(status)), title);
        self.kmes(frame, kme_area, status);
        self.peers(frame, peer_area, status);
        frame.render_widget(Paragraph::new(self.detail(status)).wrap(Wrap { trim: true }), detail);
        let keys = Line::from(" q quit   up/down peer   PgUp/PgDn ten peers").style(self.style(Tone::Head));
        frame.render_widget(keys, help);
    }

    fn title(&self, i: &InterfaceStatus) -> Line<'static> {
        let up = i.peers.iter().filter(|p| p.state == PeerState::Up).count();
        let mut words =
            vec![Span::styled(format!("qvpn-ctl top {}", clean(&self.interface)), self.style(Tone::Head))];
        words.push(Span::raw(format!("  {up} of {} peers up", i.peers.len())));
        let total = |of: fn(&PeerStatus) -> Option<u64>| {
            i.peers
                .iter()
                .map(|p| self.rate(p, of))
                .try_fold(0u64, |sum, rate| Some(sum.saturating_add(rate?)))
        };
        if let (Some(rx), Some(tx)) = (total(|p| p.rx_bytes), total(|p| p.tx_bytes)) {
            words.push(Span::raw(format!("  received {}, sent {}", per_second(rx), per_second(tx))));
        }
        Line::from(words)
    }

    fn kmes(&self, frame: &mut Frame<'_>, area: Rect, i: &InterfaceStatus) {
        let rows = i.kmes.iter().map(|k| {
            let (state, tone) = match k.state {
                Some(KmeState::Up) => ("up", Tone::Good),
                Some(KmeState::Down) => ("down", Tone::Bad),
                None => ("unknown", Tone::Warn),
            };
            let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            let error = k.last_error.as_deref().filter(|_| k.state != Some(KmeState::Up)).unwrap_or_default();
            Row::new([
                Cell::from(clean(&k.name)),
                Cell::from(state).style(self.style(tone)),
                Cell::from(known(k.stored_key_count.map(|n| n.to_string()))),
                Cell::from(known(k.latency_ms.map(|ms| format!("{ms:.0} ms")))),
                Cell::from(known(k.last_success_ago_s.map(|s| format!("{} ago", short(s))))),
                Cell::from(clean(error)),
            ])
        });
        let widths = [
            Constraint::Length(12),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(12),
            Constraint::Fill(1),
        ];
        let head =
            Row::new(["KME", "STATE", "KEYS", "LATENCY", "SUCCESS", "ERROR"]).style(self.style(Tone::Head));
        frame.render_widget(Table::new(rows, widths).header(head), area);
    }

    fn peers(&self, frame: &mut Frame<'_>, area: Rect, i: &InterfaceStatus) {
        let rows = i.peers.iter().map(|p| {
            let rate = |of| self.rate(p, of).map_or_else(|| "-".to_owned(), per_second);
            let cells = summary_row(p);
            let key = cells.get(2).map(|(text, _)| text.clone()).unwrap_or_default();
            let stock = p.qkd_stock.map_or_else(|| "-".to_owned(), |n| n.to_string());
            Row::new([
                Cell::from(clean(&p.name)),
                Cell::from(p.state.as_str()).style(self.style(tone_of(p.state))),
                Cell::from(key),
                Cell::from(p.epoch_age_s.map_or_else(|| "-".to_owned(), short)),
                Cell::from(stock),
                Cell::from(rate(|p| p.rx_bytes)),
                Cell::from(rate(|p| p.tx_bytes)),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(10),
            Constraint::Length(KEY_WIDTH),
            Constraint::Length(4),
            Constraint::Length(5),
            Constraint::Length(10),
            Constraint::Length(10),
        ];
        let head = Row::new(["PEER", "STATE", "KEY", "AGE", "STOCK", "RECEIVED", "SENT"])
            .style(self.style(Tone::Head));
        let table = Table::new(rows, widths)
            .header(head)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected((!i.peers.is_empty()).then_some(self.selected));
        frame.render_stateful_widget(table, area, &mut state);
    }

    /// Describes the selected peer, or the error of the daemon.
    fn detail(&self, i: &InterfaceStatus) -> Vec<Line<'static>> {
        if let Some(error) = &self.error {
            return vec![Line::from(clean(error)).style(self.style(Tone::Bad))];
        }
        let Some(p) = i.peers.get(self.selected) else { return Vec::new() };
        let mut facts = vec![clean(p.endpoint.as_deref().unwrap_or("no endpoint known"))];
        let key = summary_row(p).get(2).map(|(text, _)| text.clone()).unwrap_or_default();
        if key.chars().count() > usize::from(KEY_WIDTH) {
            facts.push(format!("key of {}", clean(&key)));
        }
        facts.extend(p.next_rekey_in_s.map(|s| format!("next rekey {}", due(s))));
        let quiet = p.last_received_ago_s.filter(|s| *s >= QUIET_SECONDS);
        facts.extend(quiet.map(|s| format!("latest packet {}", ago(s))));
        facts.extend(p.qkd_stock_lasts_s.map(|s| format!("the stock lasts {}", duration(s))));
        let dropped: u64 = p.drops.values().sum();
        facts.push(format!(
            "{} rekeys, {} failed, {dropped} packets dropped",
            p.rekeys,
            p.rekey_failures.values().sum::<u64>()
        ));
        let mut lines = vec![Line::from(format!("{}: {}", clean(&p.name), facts.join(", ")))];
        lines.extend(
            p.reason.as_ref().map(|reason| Line::from(clean(reason)).style(self.style(tone_of(p.state)))),
        );
        lines.extend(advice(p, i).map(|advice| Line::from(clean(&advice))));
        lines
    }

    /// Returns a counter's growth per second since the previous status.
    fn rate(&self, p: &PeerStatus, of: fn(&PeerStatus) -> Option<u64>) -> Option<u64> {
        let (before, now) = (self.before.as_ref()?, self.now.as_ref()?);
        let former = before.status.peers.iter().find(|q| q.name == p.name)?;
        let grown = of(p)?.saturating_sub(of(former)?);
        let ms = now.at.duration_since(before.at).as_millis().max(1);
        u64::try_from(u128::from(grown) * 1000 / ms).ok()
    }

    fn style(&self, tone: Tone) -> Style {
        if !self.colour {
            return Style::new();
        }
        match tone {
            Tone::Head => Style::new().add_modifier(Modifier::BOLD),
            Tone::Good => Style::new().fg(Color::Green),
            Tone::Warn => Style::new().fg(Color::Yellow),
            Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Plain => Style::new(),
        }
    }
}

/// Formats a duration in one unit: `36s`, `12m`, `3h`.
fn short(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default().as_secs();
    match whole {
        0..120 => format!("{whole}s"),
        120..7200 => format!("{}m", whole / 60),
        _ => format!("{}h", whole / 3600),
    }
}

/// Formats bytes per second in ten columns; only numbers of one digit have a fraction.
fn per_second(n: u64) -> String {
    let text = bytes(n);
    match text.split_once(['.', ' ']) {
        Some((whole, _)) if whole.len() > 1 => {
            format!("{whole} {}/s", text.rsplit(' ').next().unwrap_or_default())
        }
        _ => format!("{text}/s"),
    }
}
