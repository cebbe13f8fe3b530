//! `qvpn-daemon man DIR`: writes qvpn-daemon(8) from the text of `--help`.

use std::path::Path;
use std::{fs, io};

use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::Cli;

pub(crate) fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let source = concat!("qvpn ", env!("CARGO_PKG_VERSION"));
    let page = Man::new(Cli::command().disable_help_subcommand(true));
    page.section("8").source(source).manual("qvpn").generate_to(dir).map(drop)
}
