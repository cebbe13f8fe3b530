//! `guard --watch`: the resident guard of a host. It keeps both layers of the block for all configs,
//! whether daemons run or not, and daemons ask it for changes. When it ends, both layers stay.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qvpn_api::Config;
use qvpn_api::config::{OnStop, PartialConfig};
use qvpn_net::{
    Changes, Guard, GuardReply, GuardRequest, IpNet, MAX_LINE_BYTES, RoutePlan, Table, guard_socket,
    network_namespace,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::dirs::configs;
use crate::error::CtlError;
use crate::{local, output};

/// The maximum number of daemons' requests that wait.
const MAX_QUEUED_REQUESTS: usize = 64;
/// The number of lines that a daemon may leave unread before it is disconnected.
const MAX_QUEUED_REPLIES: usize = 256;
/// How often the guard checks that its socket still exists. Daemons that find no socket would guard too, and
/// on kernels without owned tables each would treat the other's filter as an attack.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn watch(config_dir: &Path, socket_dir: &Path) -> Result<(), CtlError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    runtime.block_on(async {
        let _lock = lock(socket_dir)?;
        let listener = bind(socket_dir)?;
        let mut service = Service::new(config_dir, socket_dir)?;
        service.load().await;
        service.guard.watch()?;
        notify_ready();
        service.serve(listener).await
    })
}

/// The lock is held while the guard runs, so that two guards that start at once don't take the socket from
/// each other.
fn lock(socket_dir: &Path) -> Result<File, CtlError> {
    let path = socket_dir.join("guard.lock");
    let failed = |source| CtlError::GuardSocket { path: path.clone(), source };
    std::fs::create_dir_all(socket_dir).map_err(failed)?;
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CtlError::GuardRuns(guard_socket(socket_dir))),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Creates the socket and replaces one that nobody answers on.
fn bind(socket_dir: &Path) -> Result<UnixListener, CtlError> {
    let path = guard_socket(socket_dir);
    let failed = |source| CtlError::GuardSocket { path: path.clone(), source };
    match std::os::unix::net::UnixStream::connect(&path) {
        Ok(_) => return Err(CtlError::GuardRuns(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(&path).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    // `Service::accept` decides for each connection who may send requests.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

/// A message from a daemon's connection.
enum Input {
    Request(GuardRequest),
    Malformed(String),
    Closed,
}

struct Connection {
    replies: mpsc::Sender<GuardReply>,
    /// The interface whose plan it set.
    interface: Option<String>,
}

struct Service {
    guard: Guard,
    config_dir: PathBuf,
    socket_dir: PathBuf,
    netns: u64,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    sender: mpsc::Sender<(u64, Input)>,
    inputs: mpsc::Receiver<(u64, Input)>,
    last_errors: Vec<String>,
    /// The last error about the socket that was printed.
    socket_error: Option<String>,
}

impl Service {
    fn new(config_dir: &Path, socket_dir: &Path) -> Result<Self, CtlError> {
        let failed = |source| CtlError::GuardSocket { path: socket_dir.to_owned(), source };
        let (sender, inputs) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let guard = Guard::connect()?;
        if let Some(reason) = guard.without_filter() {
            output::note(&format!("qvpn-ctl: warning: {reason}"));
        }
        Ok(Self {
            guard,
            config_dir: config_dir.to_owned(),
            socket_dir: socket_dir.to_owned(),
            netns: network_namespace().map_err(failed)?,
            connections: BTreeMap::new(),
            next_connection: 0,
            sender,
            inputs,
            last_errors: Vec::new(),
            socket_error: None,
        })
    }

    /// Installs the block of every config. A config that is refused is blocked as far as it can be read.
    async fn load(&mut self) {
        let files = match configs(&self.config_dir) {
            Ok(files) => files,
            Err(error) => return output::print_error(&error),
        };
        for file in files {
            let Some(plan) = wanted(&file) else { continue };
            let name = plan.interface().to_owned();
            // What a daemon asked for is newer than its file; the file can only extend the block.
            let plan = match self.guard.plan(&name) {
                Some(current) if self.is_claimed(&name) => {
                    let local = if plan.is_connected() { plan.local() } else { current.local() }.to_vec();
                    current.clone().with_protect(plan.filtered().collect::<Vec<_>>()).with_local(local)
                }
                Some(current) => plan.keeping(current),
                None => plan,
            };
            match self.guard.set(plan).await {
                Ok(changes) => report(&name, &changes),
                Err(error) => output::note(&format!("qvpn-ctl: {name}: {error}")),
            }
        }
    }

    fn is_claimed(&self, interface: &str) -> bool {
        self.connections.values().any(|connection| connection.interface.as_deref() == Some(interface))
    }

    async fn serve(mut self, mut listener: UnixListener) -> Result<(), CtlError> {
        let mut socket_check = tokio::time::interval(SOCKET_CHECK_INTERVAL);
        let mut hangup = signal(SignalKind::hangup()).map_err(CtlError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(CtlError::Runtime)?;
        loop {
            tokio::select! {
                () = self.guard.changed() => self.restore().await,
                Ok((stream, _)) = listener.accept() => self.accept(stream),
                Some((number, input)) = self.inputs.recv() => self.input(number, input).await,
                _ = hangup.recv() => self.load().await,
                _ = socket_check.tick() => self.keep_socket(&mut listener),
                // Both layers stay in the kernel.
                _ = terminate.recv() => return Ok(()),
            }
        }
    }

    /// Creates the socket again if somebody removed it or its directory.
    fn keep_socket(&mut self, listener: &mut UnixListener) {
        if !self.socket_dir.exists() || guard_socket(&self.socket_dir).exists() {
            return;
        }
        match bind(&self.socket_dir) {
            Ok(new) => {
                *listener = new;
                self.socket_error = None;
                output::note("the guard's socket was removed; it is there again");
            }
            Err(error) => {
                let text = error.to_string();
                if self.socket_error.as_ref() != Some(&text) {
                    output::print_error(&error);
                    self.socket_error = Some(text);
                }
            }
        }
    }

    fn accept(&mut self, stream: UnixStream) {
        // Besides root, the owner of the socket directory may send requests.
        let owner = std::fs::metadata(&self.socket_dir).map_or(0, |metadata| metadata.uid());
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == owner => {}
            Ok(peer) => {
                return output::note(&format!("qvpn-ctl: refused a connection of user {}", peer.uid()));
            }
            Err(_) => return,
        }
        let number = self.next_connection;
        self.next_connection += 1;
        let (reader, mut writer) = stream.into_split();
        let (replies, mut queue) = mpsc::channel::<GuardReply>(MAX_QUEUED_REPLIES);
        self.connections.insert(number, Connection { replies, interface: None });
        let inputs = self.sender.clone();
        tokio::spawn(read(number, reader, inputs));
        tokio::spawn(async move {
            while let Some(reply) = queue.recv().await {
                let Ok(mut line) = serde_json::to_vec(&reply) else { continue };
                line.push(b'\n');
                if writer.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
    }

    async fn input(&mut self, number: u64, input: Input) {
        let reply = match input {
            Input::Closed => return self.close(number).await,
            Input::Malformed(error) => GuardReply::Failed { error },
            Input::Request(GuardRequest::Set { netns, .. } | GuardRequest::Unblock { netns, .. })
                if netns != self.netns =>
            {
                GuardReply::Failed { error: "the guard is in another network namespace".to_owned() }
            }
            Input::Request(GuardRequest::Set { plan, release, .. }) => {
                match RoutePlan::try_from(&plan).and_then(|plan| Ok((plan, parsed(&release)?))) {
                    Ok((plan, release)) => self.set(number, plan, &release).await,
                    Err(error) => GuardReply::Failed { error },
                }
            }
            Input::Request(GuardRequest::Unblock { interface, prefixes, .. }) => match parsed(&prefixes) {
                Ok(prefixes) => self.unblock(interface, &prefixes).await,
                Err(error) => GuardReply::Failed { error },
            },
            Input::Request(GuardRequest::Reload) => {
                self.load().await;
                GuardReply::Done { changes: Vec::new(), status: None }
            }
            Input::Request(GuardRequest::Release) => self.release(number).await,
        };
        self.send(number, reply);
    }

    async fn set(&mut self, number: u64, plan: RoutePlan, release: &[IpNet]) -> GuardReply {
        let name = plan.interface().to_owned();
        let other =
            self.connections.iter().any(|(n, c)| *n != number && c.interface.as_deref() == Some(&name));
        if other {
            return GuardReply::Failed { error: format!("another daemon has asked for the block of {name}") };
        }
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.interface = Some(name.clone());
        }
        let plan = match plan.is_connected() {
            true => local::remembered(plan, self.guard.net(), &self.config_dir).await,
            false => plan,
        };
        let plan = match self.guard.plan(&name) {
            Some(current) => plan.keeping(&current.clone().releasing(release)),
            None => plan,
        };
        match self.guard.set(plan).await {
            Ok(changes) => {
                report(&name, &changes);
                let status = self.guard.status(&name).map(Into::into);
                GuardReply::Done { changes: lines(&changes), status }
            }
            Err(error) => GuardReply::Failed { error: error.to_string() },
        }
    }

    /// Releases blocks for `qvpn-ctl unblock`, except those of a running daemon.
    async fn unblock(&mut self, interface: Option<String>, prefixes: &[IpNet]) -> GuardReply {
        let failed = |error: String| GuardReply::Failed { error };
        let known: Vec<String> = self.guard.interfaces().map(str::to_owned).collect();
        let names: Vec<String> = match interface {
            Some(name) if known.contains(&name) => vec![name],
            Some(name) => return failed(format!("nothing of {name} is blocked")),
            None => known,
        };
        if let Some(name) = names.iter().find(|name| self.is_claimed(name)) {
            return failed(format!("the daemon of {name} runs; stop it first: `systemctl stop qvpn@{name}`"));
        }
        let mut all = Changes::default();
        for name in names {
            let Some(plan) = self.guard.plan(&name).cloned() else { continue };
            let done = match prefixes {
                [] => self.guard.release(&plan).await,
                _ => match releasable(&self.config_dir, &plan, prefixes) {
                    Ok(chosen) => self.guard.set(plan.releasing(&chosen)).await,
                    Err(error) => return failed(error),
                },
            };
            match done {
                Ok(changes) => {
                    report(&name, &changes);
                    all.extend(changes);
                }
                Err(error) => return failed(error.to_string()),
            }
        }
        GuardReply::Done { changes: lines(&all), status: None }
    }

    async fn release(&mut self, number: u64) -> GuardReply {
        let interface = self.connections.get_mut(&number).and_then(|connection| connection.interface.take());
        let plan = interface.and_then(|name| self.guard.plan(&name).cloned());
        let Some(plan) = plan else {
            return GuardReply::Failed { error: "nothing was blocked by this connection".to_owned() };
        };
        match self.guard.release(&plan).await {
            Ok(changes) => {
                report(plan.interface(), &changes);
                GuardReply::Done { changes: lines(&changes), status: None }
            }
            Err(error) => GuardReply::Failed { error: error.to_string() },
        }
    }

    /// A daemon is gone: only the block stays.
    async fn close(&mut self, number: u64) {
        let connection = self.connections.remove(&number);
        let Some(name) = connection.and_then(|connection| connection.interface) else { return };
        let Some(plan) = self.guard.plan(&name).cloned() else { return };
        if let Err(error) = self.guard.set(plan.on_device(None)).await {
            output::note(&format!("qvpn-ctl: {name}: {error}"));
        }
    }

    async fn restore(&mut self) {
        let restored = self.guard.restore().await;
        for challenge in &restored.challenges {
            output::note(&format!("{}: {}; {}", challenge.interface, challenge.what, challenge.effect));
        }
        let done = lines(&restored.changes);
        done.iter().for_each(|line| output::note(&format!("restored: {line}")));
        let errors: Vec<String> = restored.errors.iter().map(ToString::to_string).collect();
        if errors != self.last_errors {
            errors.iter().for_each(|error| output::note(&format!("qvpn-ctl: can't restore: {error}")));
            self.last_errors = errors;
        }
        if restored.challenges.is_empty() && done.is_empty() {
            return;
        }
        let reports: Vec<(u64, GuardReply)> = self
            .connections
            .iter()
            .filter_map(|(number, connection)| {
                let name = connection.interface.as_deref()?;
                let own: Vec<_> =
                    restored.challenges.iter().filter(|c| c.interface == name).cloned().collect();
                Some((*number, GuardReply::report(&own, &done, self.guard.status(name))))
            })
            .collect();
        for (number, report) in reports {
            self.send(number, report);
        }
    }

    /// A daemon that does not read its replies is disconnected, so it never holds up the guard.
    fn send(&mut self, number: u64, reply: GuardReply) {
        if let Some(connection) = self.connections.get(&number)
            && connection.replies.try_send(reply).is_err()
        {
            self.connections.remove(&number);
        }
    }
}

/// Reads a daemon's requests until it disconnects.
async fn read(number: u64, reader: OwnedReadHalf, inputs: mpsc::Sender<(u64, Input)>) {
    let mut lines = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
        let read = (&mut lines).take(limit).read_until(b'\n', &mut line).await;
        let input = match read {
            Ok(_) if line.ends_with(b"\n") => match serde_json::from_slice(&line) {
                Ok(request) => Input::Request(request),
                Err(error) => Input::Malformed(format!("not a request of this version: {error}")),
            },
            _ => Input::Closed,
        };
        let closed = matches!(input, Input::Closed);
        if inputs.send((number, input)).await.is_err() || closed {
            return;
        }
    }
}

/// Returns the block of a config file while no daemon runs; `None` if nothing is to be blocked.
fn wanted(file: &Path) -> Option<RoutePlan> {
    let plan = match Config::load(file) {
        Ok(config) if config.interface.on_stop == OnStop::Open => return None,
        Ok(config) => RoutePlan::of(&config).map_err(|error| error.to_string()),
        Err(errors) => {
            output::note(&errors.to_string());
            partial(file)?
        }
    };
    plan.map_err(|error| output::note(&format!("qvpn-ctl: {}: {error}", file.display()))).ok()
}

/// No daemon will run on a refused config, so its traffic would leave in clear.
fn partial(file: &Path) -> Option<Result<RoutePlan, String>> {
    let PartialConfig { interface, allowed_ips } = Config::load_partial(file);
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let plan = match interface {
        Some(i) => RoutePlan::new(&i.name, allowed_ips, i.table, i.fwmark, i.listen_port)
            .map(|plan| plan.with_local(i.local).with_protect(i.protect)),
        None => RoutePlan::new(&stem, allowed_ips, Table::Auto, 0, 51820),
    };
    Some(plan.map_err(|error| error.to_string()))
}

fn parsed(prefixes: &[String]) -> Result<Vec<IpNet>, String> {
    let parse = |text: &String| text.parse().map_err(|error| format!("`{text}`: {error}"));
    prefixes.iter().map(parse).collect()
}

/// Returns what `plan` blocks inside `prefixes`, if no config has it any more.
fn releasable(config_dir: &Path, plan: &RoutePlan, prefixes: &[IpNet]) -> Result<Vec<IpNet>, String> {
    let mut configured = BTreeMap::new();
    for file in configs(config_dir).unwrap_or_default() {
        let plan = wanted(&file);
        configured.extend(plan.iter().flat_map(|plan| plan.filtered()).map(|prefix| (prefix, file.clone())));
    }
    if let Some((prefix, file)) = prefixes.iter().find_map(|prefix| configured.get_key_value(prefix)) {
        let file = file.display();
        return Err(format!("{prefix} is in {file}: take it out of `allowed_ips` or `protect` first"));
    }
    let kept: Vec<IpNet> = plan.filtered().filter(|prefix| !configured.contains_key(prefix)).collect();
    let inside = |kept: &&IpNet| prefixes.iter().any(|prefix| prefix.contains(*kept));
    let chosen: Vec<IpNet> = kept.iter().filter(inside).copied().collect();
    if chosen.is_empty() {
        let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
        let kept = if kept.is_empty() { "none".to_owned() } else { kept.join(", ") };
        return Err(format!("no such prefix is blocked in addition to the configs; these are: {kept}"));
    }
    Ok(chosen)
}

fn lines(changes: &Changes) -> Vec<String> {
    changes.added.iter().chain(&changes.replaced).chain(&changes.removed).cloned().collect()
}

fn report(interface: &str, changes: &Changes) {
    for (verb, list) in
        [("added", &changes.added), ("replaced", &changes.replaced), ("removed", &changes.removed)]
    {
        list.iter().for_each(|what| output::note(&format!("{interface}: {verb} {what}")));
    }
}

/// Notifies systemd that the block of all configs is in place (`Type=notify`).
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent =
        std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path));
    if let Err(error) = sent {
        output::note(&format!("qvpn-ctl: systemd was not notified: {error}"));
    }
}
