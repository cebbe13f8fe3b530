//! Man pages and completion scripts, from the same source as `--help` and the config's grammar.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use qvpn_api::config::REFERENCE;

use crate::cli::{Cli, Shell};
use crate::error::CtlError;
use crate::output;

/// Writes the man pages of qvpn-ctl and qvpn.toml(5) into `dir`. `qvpn-daemon man` and `kme-sim man` write the others.
pub(crate) fn man(dir: &Path) -> Result<(), CtlError> {
    let failed = |source| CtlError::Folder { dir: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    for command in with_subcommands(Cli::command()) {
        let source = concat!("qvpn ", env!("CARGO_PKG_VERSION"));
        Man::new(command).section("1").source(source).manual("qvpn").generate_to(dir).map_err(failed)?;
    }
    fs::write(dir.join("qvpn.toml.5"), config_page().map_err(failed)?).map_err(failed)
}

/// A command and all below it that are shown, each named as it is typed.
fn with_subcommands(command: Command) -> Vec<Command> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut all = vec![command.clone()];
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        all.extend(with_subcommands(sub.clone()));
    }
    all
}

/// qvpn.toml(5), from the same table that the grammar is tested against.
fn config_page() -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    roff.control("TH", ["qvpn.toml", "5", "", concat!("qvpn ", env!("CARGO_PKG_VERSION")), "qvpn"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("qvpn.toml - the config of a qvpn interface, /etc/qvpn/IFACE.toml")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman("TOML. One file describes one interface and is run by one daemon, qvpn-daemon(8). Relative paths start from the file's folder. Unknown keys are refused; `qvpn-ctl check FILE` names all errors at once, each with its line, its column and what to write instead.")]);
    for section in REFERENCE {
        roff.control("SH", [section.title]);
        roff.text([roman(section.about)]);
        for key in section.keys {
            roff.control("TP", []);
            roff.text([bold(key.name), roman(" = "), italic(key.values)]);
            let default =
                if key.default.is_empty() { String::new() } else { format!(" Default: {}.", key.default) };
            roff.text([roman(format!("{}{default}", key.about))]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("qvpn-ctl"),
        roman("(1), "),
        bold("qvpn-daemon"),
        roman("(8), "),
        bold("kme-sim"),
        roman("(1)"),
    ]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// zsh runs a script of its `fpath` at the first tab in place of what it defines; without this that tab does nothing.
const ZSH_AT_ONCE: &str =
    "if [[ ${funcstack[1]} == _qvpn-ctl ]]; then _clap_dynamic_completer_qvpn_ctl; fi\n";

/// Prints the script that makes a shell ask this program what could follow.
pub(crate) fn completions(shell: Shell) -> Result<(), CtlError> {
    let (shell, more): (&dyn EnvCompleter, &str) = match shell {
        Shell::Bash => (&Bash, ""),
        Shell::Zsh => (&Zsh, ZSH_AT_ONCE),
        Shell::Fish => (&Fish, ""),
    };
    let mut script = Vec::new();
    shell
        .write_registration("COMPLETE", "qvpn-ctl", "qvpn-ctl", "qvpn-ctl", &mut script)
        .map_err(CtlError::Output)?;
    script.extend_from_slice(more.as_bytes());
    output::print(&String::from_utf8_lossy(&script))
}
