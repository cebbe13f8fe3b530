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

/// Writes the man pages of qvpn-ctl and qvpn.toml(5) into `dir`. `qvpn-daemon man` and `kme-sim man` write
/// the others.
pub(crate) fn man(dir: &Path) -> Result<(), CtlError> {
    let failed = |source| CtlError::Directory { dir: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    for command in with_subcommands(Cli::command()) {
        let source = concat!("qvpn ", env!("CARGO_PKG_VERSION"));
        Man::new(command).section("1").source(source).manual("qvpn").generate_to(dir).map_err(failed)?;
    }
    fs::write(dir.join("qvpn.toml.5"), config_page().map_err(failed)?).map_err(failed)
}

/// Returns a command and its visible subcommands, each with its full name.
fn with_subcommands(command: Command) -> Vec<Command> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut all = vec![command.clone()];
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        all.extend(with_subcommands(sub.clone()));
    }
    all
}

/// Builds qvpn.toml(5) from the table that is tested against the grammar.
fn config_page() -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    roff.control("TH", ["qvpn.toml", "5", "", concat!("qvpn ", env!("CARGO_PKG_VERSION")), "qvpn"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("qvpn.toml - the config of a qvpn interface, /etc/qvpn/IFACE.toml")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "The file is TOML. It describes one interface, which one qvpn-daemon(8) runs. \
     Relative paths start from the file's directory. Unknown keys are refused; `qvpn-ctl check FILE` \
     prints all errors at once, each with its line, its column and what to write instead.",
    )]);
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

/// At the first tab, zsh runs the script in its `fpath` instead of the function that it defines; this calls
/// the function.
const ZSH_FIRST_TAB: &str =
    "if [[ ${funcstack[1]} == _qvpn-ctl ]]; then _clap_dynamic_completer_qvpn_ctl; fi\n";

/// Prints the script that lets a shell query this program for completions.
pub(crate) fn completions(shell: Shell) -> Result<(), CtlError> {
    let (shell, more): (&dyn EnvCompleter, &str) = match shell {
        Shell::Bash => (&Bash, ""),
        Shell::Zsh => (&Zsh, ZSH_FIRST_TAB),
        Shell::Fish => (&Fish, ""),
    };
    let mut script = Vec::new();
    shell
        .write_registration("COMPLETE", "qvpn-ctl", "qvpn-ctl", "qvpn-ctl", &mut script)
        .map_err(CtlError::Output)?;
    script.extend_from_slice(more.as_bytes());
    output::print(&String::from_utf8_lossy(&script))
}
