//! `version`: the versions of this program and of the running daemons.

use qvpn_api::control::{Reply, Request, VERSION};
use qvpn_api::status::SCHEMA;

use crate::client::{self, Client};
use crate::dirs::Dirs;
use crate::error::CtlError;
use crate::output::{self, clean};

pub(crate) fn version(dirs: &Dirs, verbose: bool) -> Result<(), CtlError> {
    let mut text = concat!("qvpn-ctl ", env!("CARGO_PKG_VERSION"), "\n").to_owned();
    if verbose {
        text += &format!(
            "  control API {VERSION}, status schema {SCHEMA}\n  configs in {}, sockets in {}\n",
            dirs.config_dir.display(),
            dirs.socket_dir.display()
        );
    }
    let mut failure = None;
    for name in client::running(&dirs.socket_dir)? {
        let reply = Client::connect(&dirs.socket_dir, &name).and_then(|mut client| {
            match client.ask(&Request::Version)? {
                Reply::Version { daemon, pid, .. } => Ok((daemon, pid)),
                _ => Err(client.unexpected()),
            }
        });
        match reply {
            Ok((daemon, pid)) => {
                let process = if verbose { format!(", process {pid}") } else { String::new() };
                text += &format!("{}: qvpn-daemon {}{process}\n", clean(&name), clean(&daemon));
            }
            // The last error ends the program; earlier ones are printed here.
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    output::print_error(&earlier);
                }
            }
        }
    }
    output::print(&text)?;
    failure.map_or(Ok(()), Err)
}
