//! The server side of the control socket.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde_json::Value;
use tracing::info;

use super::line::{LineError, LineReader, write_line};
use super::updates;
use super::{
    ControlError, ErrorCode, MAX_REQUEST_LINE, MigrateRequest, MigrationCounts, MigrationState,
    MigrationStatus, NameClaim, Reply, Request, Update, VmControl,
};
use crate::logging::COURSE;
use crate::poll::hung_up;
use crate::sync::lock;

/// Most connections at a time; further ones are told so and closed.
pub const MAX_CLIENTS: usize = 32;

/// Time limits, apart so that tests can shorten them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For a complete request line; an idle connection is closed after it.
    pub(crate) request: Duration,
    /// For a client to take some of an answer.
    pub(crate) write: Duration,
    /// How often a migration looks whether its client is still there.
    pub(crate) poll: Duration,
    /// How long the end of the server waits for answers that are being written.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            write: Duration::from_secs(5),
            poll: Duration::from_millis(200),
            // Much longer than any answer takes. A client that does not read is given up after
            // `write`.
            drain: Duration::from_secs(60),
        }
    }
}

/// Serves a VM's control socket until dropped.
pub struct Server {
    shared: Arc<Shared>,
    wake: UnixStream,
    acceptor: Option<JoinHandle<()>>,
    _claim: NameClaim,
}

struct Shared {
    vm: Arc<dyn VmControl>,
    limits: Limits,
    clients: Mutex<Clients>,
    /// Signalled when `Clients::busy` falls.
    quiet: Condvar,
    migration: Mutex<MigrationStatus>,
    /// Changed with `migration` locked.
    migrations: Mutex<MigrationCounts>,
}

#[derive(Default)]
struct Clients {
    stopping: bool,
    next_id: u64,
    open: HashMap<u64, UnixStream>,
    /// Connections with a request that is not answered yet.
    busy: usize,
}

impl Server {
    /// Listens on the claimed name's socket and serves `vm`.
    pub fn start(claim: NameClaim, vm: Arc<dyn VmControl>) -> Result<Self, ControlError> {
        Self::start_with(claim, vm, Limits::default())
    }

    pub(crate) fn start_with(
        claim: NameClaim,
        vm: Arc<dyn VmControl>,
        limits: Limits,
    ) -> Result<Self, ControlError> {
        let listener = claim.listen()?;
        let failed = |e: io::Error| {
            let text = format!("cannot serve {}: {e}", claim.socket().display());
            ControlError::failed(text)
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let shared = Arc::new(Shared {
            vm,
            limits,
            clients: Mutex::default(),
            quiet: Condvar::new(),
            migration: Mutex::default(),
            migrations: Mutex::default(),
        });
        let for_acceptor = shared.clone();
        let acceptor = wherry_threads::of_kind("control")
            .spawn(move || accept_loop(&for_acceptor, &listener, &woken))
            .map_err(failed)?;
        Ok(Self { shared, wake, acceptor: Some(acceptor), _claim: claim })
    }
}

impl Drop for Server {
    /// Takes no new clients, lets answers under way go out (within `Limits::drain`), then closes
    /// the connections.
    fn drop(&mut self) {
        let _ = self.wake.shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let mut clients = lock(&self.shared.clients);
        clients.stopping = true;
        let (clients, _) = self
            .shared
            .quiet
            .wait_timeout_while(clients, self.shared.limits.drain, |clients| clients.busy > 0)
            .unwrap_or_else(PoisonError::into_inner);
        for stream in clients.open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Waits until one of the two can be read; false when it was `woken`.
fn wait_for_client(listener: &UnixListener, woken: &UnixStream) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
    poll(&mut fds, None).is_err() || fds[1].revents().is_empty()
}

fn accept_loop(shared: &Arc<Shared>, listener: &UnixListener, woken: &UnixStream) {
    while wait_for_client(listener, woken) {
        match listener.accept() {
            Ok((stream, _)) => admit(shared, stream),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // Out of descriptors, most likely: wait until some are closed instead of spinning.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Starts a thread for the connection, or refuses it.
fn admit(shared: &Arc<Shared>, mut stream: UnixStream) {
    let prepared = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_write_timeout(Some(shared.limits.write)))
        .and_then(|()| stream.try_clone());
    let Ok(clone) = prepared else { return };
    let id = {
        let mut clients = lock(&shared.clients);
        if clients.open.len() >= MAX_CLIENTS {
            drop(clients);
            // Fits into the socket's empty buffer: does not block.
            let error =
                ControlError::new(ErrorCode::Busy, format!("more than {MAX_CLIENTS} connections"))
                    .hint("close some and try again");
            let _ = write_line(&mut stream, &Reply::Error(error));
            return;
        }
        clients.next_id += 1;
        let id = clients.next_id;
        clients.open.insert(id, clone);
        id
    };
    let for_thread = shared.clone();
    let spawned = wherry_threads::of_kind("control-client").spawn(move || {
        let _ = catch_unwind(AssertUnwindSafe(|| for_thread.serve(stream)));
        lock(&for_thread.clients).open.remove(&id);
    });
    if spawned.is_err() {
        lock(&shared.clients).open.remove(&id);
    }
}

/// Counts a connection as busy while it lives.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.0.clients).busy -= 1;
        self.0.quiet.notify_all();
    }
}

/// Says what a client wants to change. What decides who runs is said at a place of its own each, so
/// that a client who asks for something else all the time does not hide it.
fn note(request: &Request) {
    let Some(what) = request.change() else { return };
    macro_rules! say {
        () => {
            info!(target: COURSE, "a client asks for {what}")
        };
    }
    match request {
        Request::Kill {} => say!(),
        Request::Stop {} => say!(),
        Request::Resume { force: true } => say!(),
        Request::MigrateCancel {} => say!(),
        _ => say!(),
    }
}

fn to_value<T: Serialize>(value: T) -> Result<Value, ControlError> {
    serde_json::to_value(value).map_err(|e| ControlError::failed(e.to_string()))
}

/// Runs a call of the machine; a panic in it becomes an error instead of a client that waits for
/// ever.
fn guarded<T>(call: impl FnOnce() -> Result<T, ControlError>) -> Result<T, ControlError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(ControlError::failed("internal error in the VMM; see its standard error"))
    })
}

fn final_reply(result: Result<Value, ControlError>) -> Reply {
    match result {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Error(error),
    }
}

impl Shared {
    /// `None` when the server is ending.
    fn busy(&self) -> Option<Busy<'_>> {
        let mut clients = lock(&self.clients);
        if clients.stopping {
            return None;
        }
        clients.busy += 1;
        Some(Busy(self))
    }

    fn serve(self: &Arc<Self>, stream: UnixStream) {
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut reader = LineReader::new(stream, MAX_REQUEST_LINE);
        loop {
            let line = match reader.next_line(Some(self.limits.request)) {
                Ok(line) => line,
                Err(LineError::TooLong(max)) => {
                    let text = format!("request longer than {max} bytes");
                    let error = ControlError::new(ErrorCode::BadRequest, text);
                    let _ = write_line(&mut writer, &Reply::Error(error));
                    return;
                }
                Err(_) => return,
            };
            let Some(_busy) = self.busy() else { return };
            let reply = match serde_json::from_slice::<Request>(&line) {
                Err(e) => {
                    let text = format!("not a request of this version: {e}");
                    Reply::Error(ControlError::new(ErrorCode::BadRequest, text))
                }
                Ok(Request::Console {}) => return self.console(reader, writer),
                Ok(Request::Migrate(request)) => match self.migrate(&mut writer, request) {
                    Some(result) => final_reply(result),
                    None => return,
                },
                Ok(request) => final_reply(guarded(|| self.dispatch(request))),
            };
            if write_line(&mut writer, &reply).is_err() {
                return;
            }
        }
    }

    fn dispatch(&self, request: Request) -> Result<Value, ControlError> {
        let vm = &self.vm;
        note(&request);
        match request {
            Request::Info {} => {
                let mut info = vm.info();
                let (migration, counts) = {
                    let migration = lock(&self.migration);
                    (migration.clone(), *lock(&self.migrations))
                };
                info.migrations = counts;
                info.last_migration =
                    (migration.state != MigrationState::None).then_some(migration);
                to_value(info)
            }
            Request::Pause {} => to_value(vm.pause()?),
            Request::Resume { force } => to_value(vm.resume(force)?),
            Request::Stop {} => to_value(vm.stop()?),
            Request::Kill {} => {
                vm.kill();
                Ok(Value::Null)
            }
            Request::BalloonSet { target_bytes } => to_value(vm.balloon_set(target_bytes)?),
            Request::BalloonStats {} => to_value(vm.balloon_stats()?),
            Request::MigrateCancel {} => to_value(vm.migrate_cancel()?),
            Request::MigrateStatus {} => to_value(lock(&self.migration).clone()),
            Request::Console {} | Request::Migrate(_) => unreachable!("served before"),
        }
    }

    fn console(&self, reader: LineReader, mut writer: UnixStream) {
        let result = guarded(|| self.vm.check_console());
        let (stream, early) = reader.into_parts();
        let result = match result {
            Ok(()) if !early.is_empty() => Err(ControlError::new(
                ErrorCode::BadRequest,
                "console input before the console was granted",
            )),
            other => other,
        };
        let granted = result.is_ok();
        let reply = final_reply(result.map(|()| Value::Null));
        if write_line(&mut writer, &reply).is_err() || !granted {
            return;
        }
        // A socket's time limits belong to all its descriptors.
        let ready = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None));
        if ready.is_ok()
            && let Err(e) = guarded(|| self.vm.attach_console(stream))
        {
            // Granted and not kept, as when the last place was taken meanwhile: the reason is all
            // it will show.
            let _ = write!(writer, "\r\n[wherry: {}]\r\n", e.message);
        }
    }

    /// Runs a migration and writes its progress. `None` when the client is gone; the migration then
    /// goes on (detached) or was told to stop.
    fn migrate(
        self: &Arc<Self>,
        writer: &mut UnixStream,
        request: MigrateRequest,
    ) -> Option<Result<Value, ControlError>> {
        let before = {
            let mut status = lock(&self.migration);
            if status.state == MigrationState::Running {
                return Some(Err(ControlError::new(ErrorCode::Busy, "a migration is under way")
                    .hint("wait for it, or end it with `wherry cancel NAME`")));
            }
            let running = MigrationStatus {
                state: MigrationState::Running,
                uri: request.uri.clone(),
                ..MigrationStatus::default()
            };
            std::mem::replace(&mut *status, running)
        };
        let kept = before.clone();
        let detach = request.detach;
        let (updates, queue) = updates::queue();
        let for_worker = self.clone();
        let spawned = wherry_threads::of_kind("control-migrate").spawn(move || {
            let shared = &for_worker;
            let result = guarded(|| {
                shared.vm.migrate(&request, &mut |update| {
                    if let Update::Progress(progress) = &update {
                        lock(&shared.migration).progress = Some(progress.clone());
                    }
                    // A slow or absent client must not slow the migration down.
                    updates.offer(update);
                })
            });
            shared.migration_ended(&result, before);
            drop(updates);
            result
        });
        let worker = match spawned {
            Ok(worker) => worker,
            Err(e) => {
                let result =
                    Err(ControlError::new(ErrorCode::MigrationFailed, format!("no thread: {e}")));
                *lock(&self.migration) = kept;
                return Some(result);
            }
        };
        loop {
            let lost = match queue.recv_timeout(self.limits.poll) {
                Ok(Update::Progress(progress)) => {
                    write_line(writer, &Reply::Event(progress)).is_err()
                }
                Ok(Update::Trace(line)) => write_line(writer, &Reply::Trace(line)).is_err(),
                Err(RecvTimeoutError::Timeout) => hung_up(writer),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if lost {
                // It may not have begun yet, and must not go on without anybody.
                while !detach
                    && guarded(|| self.vm.migrate_cancel()).is_err()
                    && !worker.is_finished()
                {
                    thread::sleep(self.limits.poll);
                }
                return None;
            }
        }
        Some(worker.join().unwrap_or_else(|_| {
            Err(ControlError::new(ErrorCode::MigrationUnknown, "internal error in the migration"))
        }))
    }

    /// `before`: what is known of the one before, which one that was refused does not hide.
    fn migration_ended(&self, result: &Result<Value, ControlError>, before: MigrationStatus) {
        use ErrorCode::{BadRequest, Busy, InvalidState, Unsupported};
        let mut status = lock(&self.migration);
        match result {
            Err(e) if matches!(e.code, BadRequest | Busy | InvalidState | Unsupported) => {
                *status = before;
                return;
            }
            Ok(report) => {
                status.state = MigrationState::Completed;
                status.report = Some(report.clone());
            }
            Err(error) => {
                status.state = match error.code {
                    ErrorCode::MigrationUnknown => MigrationState::OutcomeUnknown,
                    _ => MigrationState::Failed,
                };
                status.error = Some(error.clone());
            }
        }
        let bytes = |value: &Option<Value>, key| value.as_ref().and_then(|v| v[key].as_u64());
        let sent = bytes(&status.report, "total_bytes").or(bytes(&status.progress, "bytes"));
        lock(&self.migrations).count(result, sent.unwrap_or_default());
    }
}
