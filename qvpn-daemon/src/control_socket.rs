//! The control socket: reads requests, passes those about peers to the task that owns them, and writes
//! replies. With a section `[access]` everybody may connect, and each request is checked against that
//! section. Without it the mode of the socket file decides who may connect: root and the group `qvpn`, and
//! others that the operator adds (`setfacl`).

use std::io;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Group, chown, getegid};
use qvpn_api::config::Access;
use qvpn_api::control::{
    CodecError, ErrorCode, ErrorReply, LineBuffer, MAX_REQUEST, Message, Permission, Reply, Request,
    socket_path,
};
use qvpn_api::events::NOT_PERMITTED;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::access::{Credentials, GROUP, Rules, SharedRules};
use crate::caller::{self, RefusalLimit};
use crate::clock;
use crate::error::DaemonError;
use crate::events::Events;

/// The limit of open connections from users that may change something, and of those from all others.
const MAX_CONNECTIONS: usize = 64;
/// A client must read a reply within this time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request for the task that owns the peers.
pub(crate) struct PendingRequest {
    pub(crate) request: Request,
    /// The user that asks; the daemon's own listener has none.
    pub(crate) uid: Option<u32>,
    pub(crate) answer: oneshot::Sender<Reply>,
}

/// The socket. Dropping it removes its file.
pub(crate) struct ControlSocket {
    listener: StdUnixListener,
    path: PathBuf,
    rules: SharedRules,
}

impl ControlSocket {
    /// Creates the socket of a config's interface in `dir`. Replaces a socket that no process listens on.
    ///
    /// # Errors
    /// If another daemon listens on it, or the system refuses.
    pub(crate) fn bind(dir: &Path, interface: &str, access: Option<&Access>) -> Result<Self, DaemonError> {
        let path = socket_path(dir, interface);
        let failed = |source| DaemonError::Control { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        match StdUnixStream::connect(&path) {
            Ok(_) => return Err(DaemonError::AlreadyRunning(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        // The mode is never wider than it should be, even for a moment.
        let mask = if access.is_some() { 0o111 } else { 0o117 };
        let before = umask(Mode::from_bits_truncate(mask));
        let listener = StdUnixListener::bind(&path);
        umask(before);
        let listener = listener.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
        // Under our unit it is already the process's own group, and the unit forbids chown.
        if let Some(group) = group.filter(|group| access.is_none() && *group != getegid())
            && let Err(error) = chown(&path, None, Some(group))
        {
            tracing::warn!("{}: the group {GROUP} can't use it: {error}", path.display());
        }
        Ok(Self { listener, path, rules: SharedRules::new(Rules::new(access)) })
    }

    /// Returns the rules, which a reload changes.
    pub(crate) fn rules(&self) -> SharedRules {
        self.rules.clone()
    }

    /// Serves until the task is aborted.
    pub(crate) async fn serve(
        self,
        interface: String,
        events: Arc<Events>,
        owner: mpsc::Sender<PendingRequest>,
    ) {
        let (slots, refusals) = (ConnectionSlots::default(), Arc::<RefusalLimit>::default());
        let listener = self.listener.try_clone().and_then(UnixListener::from_std);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("control socket: {error}; restart the daemon to use it"),
        };
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let who = Credentials::of(&stream);
            let permission = self.rules.permission(&who);
            let slot = permission.and_then(|permission| slots.acquire(permission > Permission::Observe));
            let client = Client {
                interface: interface.clone(),
                events: events.clone(),
                owner: owner.clone(),
                who,
                rules: self.rules.clone(),
                refusals: refusals.clone(),
            };
            tokio::spawn(async move {
                let result = match slot {
                    Some(_slot) => client.serve_connection(stream).await,
                    // It gets its refusal without a slot.
                    None if permission.is_none() => client.refuse_stranger(stream).await,
                    None => {
                        let busy = ErrorReply::new(
                            ErrorCode::Busy,
                            "too many control connections at once; try again",
                        );
                        send(&mut stream.into_split().1, &Reply::Error(busy)).await
                    }
                };
                if let Err(error) = result {
                    tracing::debug!("control connection: {error}");
                }
            });
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // If the file stays, the next start replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Limits the open connections. Users that may change something have slots of their own, so that idle
/// connections of other users can't lock them out.
struct ConnectionSlots {
    writers: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Default for ConnectionSlots {
    fn default() -> Self {
        let slots = || Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { writers: slots(), others: slots() }
    }
}

impl ConnectionSlots {
    fn acquire(&self, may_write: bool) -> Option<OwnedSemaphorePermit> {
        let slots = if may_write { &self.writers } else { &self.others };
        slots.clone().try_acquire_owned().ok()
    }
}

struct Client {
    interface: String,
    events: Arc<Events>,
    owner: mpsc::Sender<PendingRequest>,
    who: Credentials,
    rules: SharedRules,
    refusals: Arc<RefusalLimit>,
}

impl Client {
    async fn serve_connection(self, stream: UnixStream) -> Result<(), CodecError> {
        let (mut read, mut write) = stream.into_split();
        let mut lines = LineBuffer::new(MAX_REQUEST);
        let mut piece = [0; 4096];
        loop {
            match lines.next_line() {
                Ok(Some(line)) => match Request::from_line(&line) {
                    Ok(request) if self.rules.permission(&self.who) < Some(request.needs()) => {
                        send(&mut write, &Reply::Error(self.refuse(&request))).await?;
                    }
                    Ok(Request::Events { follow }) => {
                        return self.events(follow, &mut read, &mut write).await;
                    }
                    Ok(request) => send(&mut write, &self.reply(request).await).await?,
                    Err(error) => send(&mut write, &Reply::Error(error.into())).await?,
                },
                Ok(None) => match read.read(&mut piece).await? {
                    0 => return Ok(()),
                    n => lines.push(&piece[..n]),
                },
                Err(error) => return send(&mut write, &Reply::Error(error.into())).await,
            }
        }
    }

    /// Returns the error for a request that its sender has no permission for, and reports it.
    fn refuse(&self, request: &Request) -> ErrorReply {
        if self.refusals.admits(clock::now()) {
            self.events.emit(caller::used(self.who.uid, request, NOT_PERMITTED));
        }
        let needed = request.needs();
        let message = format!(
            "this needs the permission `{needed}`; run it as root, or let root name you or a group of yours \
             in `{needed}` of [access] in the config, see qvpn.toml(5)"
        );
        ErrorReply::new(ErrorCode::NotPermitted, message)
    }

    async fn refuse_stranger(&self, stream: UnixStream) -> Result<(), CodecError> {
        let refusal = self.refuse(&Request::Show);
        send(&mut stream.into_split().1, &Reply::Error(refusal)).await
    }

    async fn reply(&self, request: Request) -> Reply {
        if request == Request::Version {
            return Reply::Version {
                daemon: env!("CARGO_PKG_VERSION").to_owned(),
                interface: self.interface.clone(),
                pid: std::process::id(),
            };
        }
        let (answer, answered) = oneshot::channel();
        let sent = self.owner.send(PendingRequest { request, uid: self.who.uid, answer }).await;
        match (sent, answered.await) {
            (Ok(()), Ok(reply)) => reply,
            _ => Reply::Error(ErrorReply::new(ErrorCode::Failed, "the daemon is stopping")),
        }
    }

    async fn events(
        &self,
        follow: bool,
        read: &mut OwnedReadHalf,
        write: &mut OwnedWriteHalf,
    ) -> Result<(), CodecError> {
        let mut events = self.events.subscribe();
        for event in events.past {
            send(write, &Reply::Event(event)).await?;
        }
        if !follow {
            return send(write, &Reply::EventsEnd { missed: events.missed }).await;
        }
        let mut ignored = [0; 256];
        loop {
            tokio::select! {
                event = events.future.recv() => match event {
                    Ok(event) => send(write, &Reply::Event(event)).await?,
                    // A follower that was too slow learns how many it missed, and can follow again.
                    Err(RecvError::Lagged(missed)) => return send(write, &Reply::EventsEnd { missed }).await,
                    Err(RecvError::Closed) => return send(write, &Reply::EventsEnd { missed: 0 }).await,
                },
                n = read.read(&mut ignored) => if n? == 0 {
                    return Ok(());
                },
            }
        }
    }
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> Result<(), CodecError> {
    let line = reply.to_line()?;
    let written = tokio::time::timeout(WRITE_TIMEOUT, write.write_all(line.as_bytes())).await;
    Ok(written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use nix::unistd::geteuid;
    use qvpn_api::events::EventKind;
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    #[tokio::test]
    async fn requests_are_answered_and_events_followed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(dir.path(), "qvpn0", None).unwrap();
        let path = dir.path().join("qvpn0.sock");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let events = Arc::new(Events::new("qvpn0"));
        let (owner, mut asked) = mpsc::channel::<PendingRequest>(1);
        let server = tokio::spawn(socket.serve("qvpn0".into(), events.clone(), owner));
        tokio::spawn(async move {
            while let Some(PendingRequest { request, answer, .. }) = asked.recv().await {
                assert_eq!(request, Request::Rekey { peer: None });
                let _ = answer.send(Reply::Rekey { peers: vec!["b".into()] });
            }
        });
        assert!(matches!(
            ControlSocket::bind(dir.path(), "qvpn0", None),
            Err(DaemonError::AlreadyRunning(_))
        ));

        let (read, mut write) = UnixStream::connect(&path).await.unwrap().into_split();
        let mut lines = BufReader::new(read).lines();
        let requests = [Request::Rekey { peer: None }, Request::Version, Request::Events { follow: true }];
        write.write_all(b"rubbish\n").await.unwrap();
        for request in requests {
            write.write_all(request.to_line().unwrap().as_bytes()).await.unwrap();
        }
        let mut next =
            async || Reply::from_line(lines.next_line().await.unwrap().unwrap().as_bytes()).unwrap();
        assert!(matches!(next().await, Reply::Error(e) if e.code == ErrorCode::Malformed));
        assert_eq!(next().await, Reply::Rekey { peers: vec!["b".into()] });
        assert!(matches!(next().await, Reply::Version { interface, .. } if interface == "qvpn0"));
        events.emit(EventKind::KmeUp { kme: "k".into() });
        assert!(matches!(next().await, Reply::Event(e) if e.kind == EventKind::KmeUp { kme: "k".into() }));

        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert!(!path.exists());
    }

    /// Serves with these rules, sends a rekey and a version request as ourselves, and returns both replies
    /// and the events.
    async fn requested_as(permission: Option<Permission>) -> (Vec<Reply>, Vec<EventKind>) {
        let events = Arc::new(Events::new("qvpn0"));
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(dir.path(), "qvpn0", Some(&Access::default())).unwrap();
        let path = dir.path().join("qvpn0.sock");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        socket.rules.set(Rules::of_everybody(permission));
        let (owner, mut asked) = mpsc::channel::<PendingRequest>(1);
        let server = tokio::spawn(socket.serve("qvpn0".into(), events.clone(), owner));
        tokio::spawn(async move {
            while let Some(PendingRequest { answer, .. }) = asked.recv().await {
                let _ = answer.send(Reply::Rekey { peers: vec![] });
            }
        });
        let (read, mut write) = UnixStream::connect(&path).await.unwrap().into_split();
        let mut lines = BufReader::new(read).lines();
        let mut replies = Vec::new();
        for request in [Request::Rekey { peer: None }, Request::Version] {
            // The connection of a user without permission ends after the first reply.
            let _ = write.write_all(request.to_line().unwrap().as_bytes()).await;
            let Ok(Some(line)) = lines.next_line().await else { break };
            replies.push(Reply::from_line(line.as_bytes()).unwrap());
        }
        server.abort();
        (replies, events.subscribe().past.into_iter().map(|event| event.kind).collect())
    }

    #[tokio::test]
    async fn each_request_needs_its_permission_and_refusals_are_reported() {
        let refusal = |reply: &Reply| match reply {
            Reply::Error(error) if error.code == ErrorCode::NotPermitted => error.message.clone(),
            reply => panic!("{reply:?}"),
        };
        let (replies, events) = requested_as(Some(Permission::Observe)).await;
        assert!(refusal(&replies[0]).contains("in `operate` of [access]"), "{replies:?}");
        assert!(matches!(replies[1], Reply::Version { .. }), "who may look, may");
        let [EventKind::ControlUsed { caller, request, result, .. }] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(
            (caller.uid, request.as_str(), result.as_str()),
            (Some(geteuid().as_raw()), "rekey", NOT_PERMITTED)
        );

        let (replies, events) = requested_as(None).await;
        assert_eq!((replies.len(), events.len()), (1, 1), "a stranger gets one reply");
        assert!(refusal(&replies[0]).contains("`observe`"), "{replies:?}");

        let (replies, events) = requested_as(Some(Permission::Operate)).await;
        assert!(matches!(replies[0], Reply::Rekey { .. }) && events.is_empty(), "{replies:?}");
    }

    #[test]
    fn a_user_that_may_only_read_locks_nobody_out() {
        let slots = ConnectionSlots::default();
        let taken: Vec<_> = (0..1000).map_while(|_| slots.acquire(false)).collect();
        assert_eq!(taken.len(), MAX_CONNECTIONS);
        let writer = slots.acquire(true);
        assert!(writer.is_some());
        drop(taken);
        assert!(slots.acquire(false).is_some());
    }

    #[tokio::test]
    async fn long_and_foreign_requests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(dir.path(), "qvpn0", None).unwrap();
        let (owner, _asked) = mpsc::channel::<PendingRequest>(1);
        let server = tokio::spawn(socket.serve("qvpn0".into(), Arc::new(Events::new("qvpn0")), owner));
        let (read, mut write) =
            UnixStream::connect(dir.path().join("qvpn0.sock")).await.unwrap().into_split();
        let mut lines = BufReader::new(read).lines();
        let mut refused =
            async || match Reply::from_line(lines.next_line().await.unwrap().unwrap().as_bytes()) {
                Ok(Reply::Error(error)) => error.code,
                other => panic!("{other:?}"),
            };
        write.write_all(b"{\"v\":2,\"request\":\"reload\"}\n").await.unwrap();
        assert_eq!(refused().await, ErrorCode::Version);
        write.write_all(b"{\"v\":1,\"request\":\"open_the_gates\"}\n").await.unwrap();
        assert_eq!(refused().await, ErrorCode::Malformed);
        write.write_all(&vec![b' '; MAX_REQUEST + 1]).await.unwrap();
        assert_eq!(refused().await, ErrorCode::TooLong);
        assert_eq!(lines.next_line().await.unwrap(), None, "and the connection ends");
        server.abort();
    }

    #[tokio::test]
    async fn a_socket_without_a_listener_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("qvpn0.sock")).unwrap());
        assert!(ControlSocket::bind(dir.path(), "qvpn0", None).is_ok());
    }
}
