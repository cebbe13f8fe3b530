//! A connection to a daemon's control socket. Each kind of failure has its own message, and all have the
//! exit code for a daemon that can't be reached.

use std::io::{BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qvpn_api::control::{CodecError, ErrorCode, MAX_REPLY, Message, Reply, Request, read_line, socket_path};

use crate::error::CtlError;

/// How long a daemon may take to answer. It does no slow work for a request, so a slower daemon hangs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Client {
    interface: String,
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(dir: &Path, interface: &str) -> Result<Self, CtlError> {
        let path = socket_path(dir, interface);
        let failed = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => CtlError::NotRunning {
                interface: interface.to_owned(),
                path: path.clone(),
                running: running(dir).unwrap_or_default(),
            },
            ErrorKind::ConnectionRefused => {
                CtlError::Gone { interface: interface.to_owned(), path: path.clone() }
            }
            ErrorKind::PermissionDenied => CtlError::NotPermitted(path.clone()),
            _ => CtlError::Unreachable { interface: interface.to_owned(), source },
        };
        let stream = UnixStream::connect(&path).map_err(failed)?;
        stream
            .set_read_timeout(Some(REPLY_TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(REPLY_TIMEOUT)))
            .map_err(failed)?;
        Ok(Self { interface: interface.to_owned(), path, stream: BufReader::new(stream) })
    }

    /// Sends `request` and returns the reply, or the daemon's error.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, CtlError> {
        self.send(request)?;
        self.next()?.ok_or_else(|| CtlError::Cut { interface: self.interface.clone() })
    }

    pub(crate) fn send(&mut self, request: &Request) -> Result<(), CtlError> {
        let line = request.to_line().map_err(|e| self.failed(e))?;
        match self.stream.get_mut().write_all(line.as_bytes()) {
            // A daemon that is too busy replies and closes the connection before it reads the request.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(|e| self.failed(e.into())),
        }
    }

    /// Returns the next reply; `None` if the daemon has closed the connection.
    pub(crate) fn next(&mut self) -> Result<Option<Reply>, CtlError> {
        let line = read_line(&mut self.stream, MAX_REPLY);
        let reply = line.and_then(|line| line.map(|l| Reply::from_line(&l)).transpose());
        match reply.map_err(|e| self.failed(e))? {
            // All our requests are well-formed, so the daemon is older.
            Some(Reply::Error(error)) if error.code == ErrorCode::Malformed => {
                Err(CtlError::TooOld { interface: self.interface.clone(), said: error.message })
            }
            Some(Reply::Error(error)) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Removes the time limit for replies.
    pub(crate) fn wait_without_limit(&mut self) -> Result<(), CtlError> {
        self.stream.get_ref().set_read_timeout(None).map_err(|e| self.failed(e.into()))
    }

    /// Returns the error for a reply that doesn't belong to the request.
    pub(crate) fn unexpected(&self) -> CtlError {
        self.failed(CodecError::Malformed("the reply doesn't belong to the request".to_owned()))
    }

    pub(crate) fn failed(&self, error: CodecError) -> CtlError {
        let interface = self.interface.clone();
        match error {
            CodecError::Io(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                CtlError::Silent { interface, seconds: REPLY_TIMEOUT.as_secs() }
            }
            CodecError::Io(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                CtlError::Cut { interface }
            }
            CodecError::Io(source) => CtlError::Unreachable { interface, source },
            CodecError::Truncated => CtlError::Cut { interface },
            source @ CodecError::Version { .. } => CtlError::Version { interface, source },
            source => CtlError::Foreign { path: self.path.clone(), source },
        }
    }
}

/// Returns the interfaces that have a control socket in `dir`, sorted.
pub(crate) fn running(dir: &Path) -> Result<Vec<String>, CtlError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            return Err(CtlError::NotPermitted(dir.to_owned()));
        }
        Err(source) => return Err(CtlError::Directory { dir: dir.to_owned(), source }),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.strip_suffix(".sock").map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    Ok(names)
}
