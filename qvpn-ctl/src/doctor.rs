//! `doctor`: checks the machine and each config, and names what keeps a tunnel from working, with the
//! command that fixes it. It changes nothing and contacts no KME; `kms check` does.

mod command;
mod finding;
mod firewall;
mod machine;
mod network;
mod tunnel;

use std::path::Path;

use qvpn_api::Config;
use serde::Serialize;

use self::finding::{Finding, Verdict};
use crate::check::{on_this_machine, warnings};
use crate::dirs::{Dirs, configs};
use crate::error::CtlError;
use crate::output::{self, Paint, Tone, clean};

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    ok: bool,
    findings: &'a [Finding],
}

pub(crate) fn doctor(dirs: &Dirs, interface: Option<&str>, json: bool) -> Result<(), CtlError> {
    let files = match interface {
        Some(name) => vec![dirs.config_dir.join(format!("{name}.toml"))],
        None => configs(&dirs.config_dir).unwrap_or_default(),
    };
    let mut findings = machine::findings();
    if files.is_empty() {
        findings.push(Finding::warning(
            "config",
            format!("there is no config in {}", dirs.config_dir.display()),
            "qvpn-ctl import /etc/wireguard/wg0.conf, or write one as in qvpn.toml(5)",
        ));
    }
    for file in &files {
        findings.extend(look_at(dirs, file));
    }
    if json {
        let ok = findings.iter().all(|f| f.result != Verdict::Bad);
        output::print_json(&Report { schema: 1, ok, findings: &findings })?;
    } else {
        output::print(&text(&findings, Paint::for_stdout()))?;
    }
    match findings.iter().filter(|f| f.result == Verdict::Bad).count() {
        0 => Ok(()),
        bad => Err(CtlError::Doctor { bad, all: findings.len() }),
    }
}

fn look_at(dirs: &Dirs, file: &Path) -> Vec<Finding> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let config = Config::load(file).and_then(|config| on_this_machine(&config).map(|()| config));
    let mut findings = match &config {
        Ok(_) => vec![Finding::ok("config", format!("{} is fine", file.display()))],
        Err(errors) => errors
            .list()
            .iter()
            .map(|error| {
                Finding::bad("config", error.to_string(), format!("qvpn-ctl check {}", file.display()))
            })
            .collect(),
    };
    // Faults of the files are reported above; the rest can still be checked.
    if let Ok(config) = Config::load(file) {
        // A config that blocks nothing has a finding of its own.
        let warnings = warnings(&config).into_iter().filter(|text| !text.starts_with("nothing is blocked"));
        let fix = format!("qvpn-ctl check {}", file.display());
        findings.extend(warnings.map(|text| Finding::warning("config", text, fix.clone())));
        findings.extend(network::findings(&config));
        findings.extend(tunnel::findings(dirs, &config));
    }
    findings.iter_mut().for_each(|finding| finding.interface = Some(name.clone()));
    findings
}

fn text(findings: &[Finding], paint: Paint) -> String {
    let mut text = String::new();
    for finding in findings {
        let (word, tone) = match finding.result {
            Verdict::Ok => ("ok", Tone::Good),
            Verdict::Warning => ("warning", Tone::Warn),
            Verdict::Bad => ("bad", Tone::Bad),
        };
        let about = finding.interface.as_ref().map(|name| format!("{}: ", clean(name))).unwrap_or_default();
        let text_about = format!("{about}{}", finding.text);
        text += &format!(
            "{} {:<13} {}\n",
            paint.text(tone, &format!("{word:<7}")),
            finding.check,
            paint.wrapped(Tone::Plain, &text_about, 22, 10)
        );
        if let Some(fix) = &finding.fix {
            // A command stays on its line, so that it can be copied.
            text += &format!("          -> {}\n", clean(fix));
        }
    }
    text
}
