//! A client key in a PKCS #11 token, such as a smart card or an HSM: the token signs the TLS handshake, and
//! the key never leaves it. A separate thread calls the vendor's library, so that a hanging library affects
//! only one operation.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use qvpn_api::config::TokenKey;

use crate::https::files::{FileError, read_file};
use crate::https::signature::{Algorithm, der_signature, digest};

/// The limit for one signature. A smart card needs up to about a second.
const SIGN_TIMEOUT: Duration = Duration::from_secs(4);
/// The limit for opening the token.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The limit for the library to close a session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Twice the number of concurrent requests at one KME.
const MAX_QUEUED_SIGNATURES: usize = 32;

/// A request for a signature.
struct Job {
    algorithm: Algorithm,
    message: Vec<u8>,
    answer: SyncSender<Result<Vec<u8>, FileError>>,
}

/// The thread that uses the token; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Token {
    // Dropped before the thread, which ends with it.
    jobs: SyncSender<Job>,
    uri: String,
    _thread: TokenThread,
}

/// Waits for its thread when it is dropped. A program that exits while the thread is still in the vendor's
/// library, or in that library's thread-exit code, crashes in the library's clean-up.
#[derive(Debug)]
struct TokenThread(Option<JoinHandle<()>>);

impl Drop for TokenThread {
    fn drop(&mut self) {
        let Some(thread) = self.0.take() else { return };
        let (ended, wait) = sync_channel::<()>(0);
        let waiter = std::thread::Builder::new().name("kms-token-end".to_owned()).spawn(move || {
            // If it panicked, its callers have got an error already.
            let _ = thread.join();
            drop(ended);
        });
        // A thread that hangs in the library is left running, even if no thread can be started to wait for
        // it.
        if waiter.is_ok() {
            let _ = wait.recv_timeout(CLOSE_TIMEOUT);
        }
    }
}

impl Token {
    /// Opens the token and finds the key.
    ///
    /// # Errors
    /// What is missing or refused, and what to do.
    pub(crate) fn open(key: TokenKey) -> Result<Self, FileError> {
        let (jobs, queue) = sync_channel(MAX_QUEUED_SIGNATURES);
        let (opened, first) = sync_channel(1);
        let uri = key.uri.clone();
        let thread = std::thread::Builder::new().name("kms-token".to_owned()).spawn(move || {
            let mut worker = Worker { key, open: None, worked: false, refused: None };
            let result = worker.session().map(|_| ());
            let usable = result.is_ok();
            // This fails only if the caller gave up.
            let _ = opened.send(result);
            if usable {
                worker.serve(&queue);
            }
        });
        let thread = thread.map_err(|e| FileError {
            what: format!("no thread can be started for the token: {e}"),
            advice: "look at the limits of the process".to_owned(),
        })?;
        let thread = TokenThread(Some(thread));
        match first.recv_timeout(OPEN_TIMEOUT) {
            Ok(result) => result.map(|()| Self { jobs, uri, _thread: thread }),
            Err(_) => Err(not_responding(&uri, OPEN_TIMEOUT)),
        }
    }

    /// Signs `message` with the token.
    pub(crate) fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, FileError> {
        let (answer, signature) = sync_channel(1);
        match self.jobs.try_send(Job { algorithm, message: message.to_vec(), answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                return Err(not_responding(&self.uri, SIGN_TIMEOUT));
            }
        }
        match signature.recv_timeout(SIGN_TIMEOUT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(not_responding(&self.uri, SIGN_TIMEOUT))
            }
        }
    }
}

fn not_responding(uri: &str, after: Duration) -> FileError {
    FileError {
        what: format!("the token of {uri} doesn't answer within {after:?}"),
        advice: "look at the token and at its vendor's service (such as pcscd); restart the daemon if its \
                 library hangs"
            .to_owned(),
    }
}

/// The state of the thread.
struct Worker {
    key: TokenKey,
    open: Option<(Session, ObjectHandle)>,
    /// Whether it has been open before.
    worked: bool,
    /// Set when the PIN was refused. It is not tried again, since a token locks itself after some tries.
    refused: Option<FileError>,
}

impl Worker {
    fn serve(&mut self, jobs: &Receiver<Job>) {
        while let Ok(Job { algorithm, message, answer }) = jobs.recv() {
            // This fails only if the caller gave up.
            let _ = answer.send(self.sign(algorithm, &message));
        }
    }

    fn sign(&mut self, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, FileError> {
        let first = match self.try_sign(algorithm, message) {
            Ok(signature) => return Ok(signature),
            Err(error) => error,
        };
        // The session ends when the token is removed and inserted again.
        self.open = None;
        self.session().map(|_| ()).and_then(|()| self.try_sign(algorithm, message).map_err(|_| first))
    }

    fn try_sign(&mut self, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, FileError> {
        let uri = self.key.uri.clone();
        let (session, key) = self.session()?;
        let failed = |e: TokenError| FileError {
            what: format!("the token of {uri} doesn't sign: {}", words(&e)),
            advice: "look whether the token is there, and whether its key may sign (CKA_SIGN)".to_owned(),
        };
        let pss =
            |hash_alg, mgf, s_len: std::ffi::c_ulong| PkcsPssParams { hash_alg, mgf, s_len: s_len.into() };
        let mechanism = match algorithm {
            Algorithm::EcdsaP256 | Algorithm::EcdsaP384 => {
                let raw =
                    session.sign(&Mechanism::Ecdsa, key, &digest(algorithm, message)).map_err(failed)?;
                return der_signature(&raw).ok_or_else(|| FileError {
                    what: format!("the token of {uri} returned a signature of {} bytes", raw.len()),
                    advice: "name a key of the same kind as the certificate's".to_owned(),
                });
            }
            Algorithm::RsaPssSha256 => {
                Mechanism::Sha256RsaPkcsPss(pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32))
            }
            Algorithm::RsaPssSha384 => {
                Mechanism::Sha384RsaPkcsPss(pss(MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48))
            }
            Algorithm::RsaPkcs1Sha256 => Mechanism::Sha256RsaPkcs,
        };
        session.sign(&mechanism, key, message).map_err(failed)
    }

    /// The session and the key; opens the session if there is none.
    fn session(&mut self) -> Result<(&Session, ObjectHandle), FileError> {
        if self.open.is_none() {
            if let Some(refused) = &self.refused {
                return Err(refused.clone());
            }
            let opened = match self.open_session() {
                // After a token was removed, some libraries find it again only after a new initialisation.
                Err(_) if self.worked && self.refused.is_none() => {
                    end_module(&self.key.module);
                    self.open_session()
                }
                other => other,
            };
            self.open = Some(opened?);
            self.worked = true;
        }
        match &self.open {
            Some((session, key)) => Ok((session, *key)),
            None => Err(not_responding(&self.key.uri, OPEN_TIMEOUT)), // It was just set.
        }
    }

    fn open_session(&mut self) -> Result<(Session, ObjectHandle), FileError> {
        let pkcs11 = module(&self.key.module)?;
        let (slot, info) = self.slot(&pkcs11)?;
        let label = info.label().to_owned();
        let session = pkcs11.open_ro_session(slot).map_err(|e| FileError {
            what: format!("the token \"{label}\" can't be opened: {}", words(&e)),
            advice: "look whether the token is there, and whether another program holds it".to_owned(),
        })?;
        self.log_in(&session, &label)?;
        let key = self.find(&session, &label)?;
        Ok((session, key))
    }

    /// Returns the only token that matches.
    fn slot(&self, pkcs11: &Pkcs11) -> Result<(Slot, TokenInfo), FileError> {
        let module = self.key.module.display();
        let failed = |e: TokenError| FileError {
            what: format!("the PKCS#11 library {module} can't tell of its tokens: {}", words(&e)),
            advice: "look at the token and at its vendor's service (such as pcscd)".to_owned(),
        };
        let mut fitting = Vec::new();
        let mut others = Vec::new();
        for slot in pkcs11.get_slots_with_initialized_token().map_err(failed)? {
            // A token that has been removed in the meantime is skipped.
            let Ok(info) = pkcs11.get_token_info(slot) else { continue };
            let fits =
                |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|wanted| wanted == has);
            if fits(&self.key.token, info.label()) && fits(&self.key.serial, info.serial_number()) {
                fitting.push((slot, info));
            } else {
                others.push(format!("\"{}\" (serial {})", info.label(), info.serial_number()));
            }
        }
        let count = fitting.len();
        match fitting.pop() {
            Some(found) if count == 1 => Ok(found),
            Some(_) => Err(FileError {
                what: format!("{count} tokens of {module} fit {}", self.key.uri),
                advice: "add `token=` with the token's label, or `serial=` with its serial number".to_owned(),
            }),
            None => Err(FileError {
                what: match others.as_slice() {
                    [] => format!("{module} has no token"),
                    some => format!(
                        "{module} has no token that fits {}; it has {}",
                        self.key.uri,
                        some.join(", ")
                    ),
                },
                advice: "put the token in, or correct `token=` and `serial=`; the daemon's user must be \
                         allowed to reach it"
                    .to_owned(),
            }),
        }
    }

    fn log_in(&mut self, session: &Session, label: &str) -> Result<(), FileError> {
        let Some(path) = &self.key.pin_file else { return Ok(()) };
        let shown = path.display().to_string();
        let bytes = read_file("pin-source", path, true, "a file with the PIN alone")?;
        let text = std::str::from_utf8(bytes.trim_ascii()).unwrap_or_default();
        if text.is_empty() {
            return Err(FileError {
                what: format!("pin-source {shown} holds no PIN"),
                advice: "put the PIN alone on one line".to_owned(),
            });
        }
        // `AuthPin` erases itself.
        let pin = AuthPin::new(Box::from(text));
        match session.login(UserType::User, Some(&pin)) {
            // A login is valid for the whole process: another KME's key may be in the same token.
            Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(TokenError::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange, _)) => {
                let refused = FileError {
                    what: format!("the token \"{label}\" refuses the PIN in {shown}"),
                    advice: "correct the file and restart the daemon; it isn't tried again, since tokens \
                             lock themselves after some wrong PINs"
                        .to_owned(),
                };
                self.refused = Some(refused.clone());
                Err(refused)
            }
            Err(TokenError::Pkcs11(RvError::PinLocked | RvError::PinExpired, _)) => {
                let refused = FileError {
                    what: format!("the PIN of the token \"{label}\" is locked or has expired"),
                    advice: "unlock it with the token's SO PIN and its vendor's tool".to_owned(),
                };
                self.refused = Some(refused.clone());
                Err(refused)
            }
            Err(e) => Err(FileError {
                what: format!("the token \"{label}\" refuses the login: {}", words(&e)),
                advice: "look at the token with its vendor's tool, or with pkcs11-tool".to_owned(),
            }),
        }
    }

    fn find(&self, session: &Session, label: &str) -> Result<ObjectHandle, FileError> {
        let mut template = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
        template.extend(self.key.object.as_ref().map(|object| Attribute::Label(object.clone().into_bytes())));
        template.extend(self.key.id.as_ref().map(|id| Attribute::Id(id.clone())));
        let failed = |e: TokenError| FileError {
            what: format!("the token \"{label}\" can't be searched: {}", words(&e)),
            advice: "look at the token with its vendor's tool, or with pkcs11-tool".to_owned(),
        };
        let found = session.find_objects(&template).map_err(failed)?;
        let key = match found[..] {
            [key] => key,
            [] => {
                let login = if self.key.pin_file.is_some() {
                    ""
                } else {
                    "; without `pin-source` only public keys may show"
                };
                return Err(FileError {
                    what: format!(
                        "the token \"{label}\" has no private key that fits {}{login}",
                        self.key.uri
                    ),
                    advice: format!(
                        "list its keys with `pkcs11-tool --module {} --login --list-objects`, and correct \
                         `object=` or `id=`",
                        self.key.module.display()
                    ),
                });
            }
            [..] => {
                return Err(FileError {
                    what: format!(
                        "{} private keys of the token \"{label}\" fit {}",
                        found.len(),
                        self.key.uri
                    ),
                    advice: "name both `object=` and `id=`".to_owned(),
                });
            }
        };
        let asks = session.get_attributes(key, &[AttributeType::AlwaysAuthenticate]).unwrap_or_default();
        if asks.contains(&Attribute::AlwaysAuthenticate(true)) {
            return Err(FileError {
                what: format!(
                    "the key of {} wants its PIN for each signature (CKA_ALWAYS_AUTHENTICATE)",
                    self.key.uri
                ),
                advice:
                    "use a key of the token that is made for authentication, such as slot 9a of a PIV card"
                        .to_owned(),
            });
        }
        Ok(key)
    }
}

/// The loaded libraries.
static MODULES: LazyLock<Mutex<HashMap<PathBuf, Pkcs11>>> = LazyLock::new(Mutex::default);

/// Finalises a library. Users of its sessions open new ones.
fn end_module(path: &Path) {
    let module = MODULES.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    if let Some(Err(error)) = module.map(Pkcs11::finalize) {
        tracing::debug!("{}: {}", path.display(), words(&error));
    }
}

/// Returns the library at `path`, which is loaded and initialised once in this process.
fn module(path: &Path) -> Result<Pkcs11, FileError> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let shown = path.display();
    let module = Pkcs11::new(path).map_err(|e| FileError {
        what: format!("the PKCS#11 library {shown} can't be loaded: {}", words(&e)),
        advice: "install the token vendor's library, and write its path as `module-path`".to_owned(),
    })?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(e) => {
            return Err(FileError {
                what: format!("the PKCS#11 library {shown} can't be set up: {}", words(&e)),
                advice: "look at the configuration that the library reads, such as SOFTHSM2_CONF".to_owned(),
            });
        }
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

/// Returns the standard's name of an error, without the library's long explanation.
fn words(error: &TokenError) -> String {
    match error {
        TokenError::Pkcs11(value, function) => format!("{function:?} says {value:?}"),
        TokenError::LibraryLoading(error) => crate::excerpt::one_line(&error.to_string()),
        other => crate::excerpt::one_line(&other.to_string()),
    }
}

/// A token that all connections to one KME share.
pub(crate) type SharedToken = Arc<Token>;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;

    /// Simulates a library's clean-up when a thread ends.
    struct AtEnd(Arc<AtomicBool>);

    impl Drop for AtEnd {
        fn drop(&mut self) {
            // Without the wait, the caller would be faster; the thread can't observe that it is waited for.
            std::thread::sleep(Duration::from_millis(50));
            self.0.store(true, Ordering::Release);
        }
    }

    thread_local!(static AT_END: Mutex<Option<AtEnd>> = const { Mutex::new(None) });

    #[test]
    fn dropping_waits_until_the_thread_has_left_the_library() {
        let gone = Arc::new(AtomicBool::new(false));
        let at_end = AtEnd(Arc::clone(&gone));
        let thread = std::thread::spawn(move || {
            AT_END.with(|slot| *slot.lock().unwrap() = Some(at_end));
        });
        drop(TokenThread(Some(thread)));
        assert!(gone.load(Ordering::Acquire));
    }

    #[test]
    fn dropping_does_not_wait_for_a_library_that_hangs() {
        let (stop, not_responding) = sync_channel::<()>(0);
        let thread = std::thread::spawn(move || {
            let _ = not_responding.recv();
        });
        let began = Instant::now();
        drop(TokenThread(Some(thread)));
        assert!(began.elapsed() >= CLOSE_TIMEOUT, "it had its time");
        drop(stop);
    }
}
