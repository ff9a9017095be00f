//! A call that is not allowed is said on standard error before it ends the process.
//!
//! The filter has the kernel send SIGSYS to the thread that made the call, instead of ending the
//! process itself, so that the VM's log names thread and call: the kernel's own log does not always
//! (it goes to a host's audit, if that is on), and its user may not read it. The handler does what
//! is safe in a signal handler alone; nothing is allocated and no lock taken. A terminal that is
//! raw is put back as it was, as for other signals that end a process ([`terminal`]), by
//! [`REQUESTS`], which every thread may make for that. Then the process ends by SIGSYS, as whoever
//! started it sees. A handler that is not let write or end the process ends it, too: SIGSYS is
//! blocked meanwhile, and the kernel ends a process whose blocked SIGSYS it must deliver.
//!
//! One call is refused, and that is all. glibc opens files of its own accord, only to read them:
//! how memory is overcommitted when a heap shrinks for the first time, how many CPUs there are when
//! a thread wants a heap of its own. It does without what it cannot open, and no VM is to end of
//! that.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use super::names;
use super::requests::{Request, TCSETS, TCSETS2, request};
use crate::terminal;

/// What [`terminal::end_by`] asks with `ioctl`.
pub const REQUESTS: &[Request] = &[TCSETS, TCSETS2];

/// `SYS_SECCOMP`: a filter sent it.
const BY_A_FILTER: c_int = 1;

/// The beginning of `siginfo_t` of a SIGSYS (sigaction(2)); libc has no names for it.
#[repr(C)]
struct Info {
    signal: c_int,
    error: c_int,
    code: c_int,
    _padding: c_int,
    _address: *const c_void,
    call: c_int,
}

/// A line on the stack.
struct Line {
    bytes: [u8; 320],
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Self { bytes: [0; 320], len: 0 }
    }

    /// What has no room is left out.
    fn text(&mut self, text: &[u8]) {
        for (to, byte) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *to = *byte;
            self.len += 1;
        }
    }

    fn number(&mut self, number: u64, base: u64) {
        let mut digits = [0; 20];
        let mut left = number;
        let mut used = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789abcdef"[(left % base) as usize];
            left /= base;
            used += 1;
            if left == 0 {
                break;
            }
        }
        self.text(digits.get(digits.len() - used..).unwrap_or_default());
    }

    fn number_of(&mut self, call: c_int) {
        self.text(b" (");
        self.number(u64::from(call.unsigned_abs()), 10);
        self.text(b")");
    }
}

/// What stands before and behind what is said.
type Around = [String; 2];
static AROUND: OnceLock<Around> = OnceLock::new();

/// For people, or as an object of JSON of the VM of that name: none of its letters needs an escape.
fn around(json: Option<&str>) -> Around {
    let Some(vm) = json else { return ["wherry: ".into(), "\n".into()] };
    [format!(r#"{{"level":"error","vm":"{vm}","message":""#), "\"}\n".into()]
}

/// `thread vcpu0: system call ptrace (101) is not allowed`.
fn line(around: Option<&Around>, thread: &[u8], call: c_int, second: u64) -> Line {
    let mut line = Line::new();
    let [before, behind] =
        around.map_or(["", "\n"], |around| around.each_ref().map(String::as_str));
    line.text(before.as_bytes());
    line.text(b"thread ");
    line.text(thread);
    line.text(b": system call ");
    line.text(names::name(call).unwrap_or("?").as_bytes());
    line.number_of(call);
    if libc::c_long::from(call) == libc::SYS_ioctl {
        line.text(b" with ");
        match request(second) {
            Some(request) => line.text(request.name.as_bytes()),
            None => {
                line.text(b"0x");
                line.number(second, 16);
            }
        }
    }
    line.text(b" is not allowed, which ends the VM; --seccomp log only notes it");
    line.text(behind.as_bytes());
    line
}

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a siginfo_t, which for this signal begins so (sigaction(2)); of
    // another sender's only the fields before the address are read.
    let info = unsafe { &*info.cast::<Info>() };
    // SAFETY: with SA_SIGINFO the third argument is the ucontext_t of the thread, which has it to
    // itself while its handler runs.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let argument = |register: c_int| registers[register as usize] as u64;
    if info.code == BY_A_FILTER
        && libc::c_long::from(info.call) == libc::SYS_openat
        && argument(libc::REG_RDX) as c_int == libc::O_RDONLY | libc::O_CLOEXEC
    {
        // What the call returns.
        registers[libc::REG_RAX as usize] = -i64::from(libc::EACCES);
        return;
    }
    if info.code == BY_A_FILTER {
        let mut name = [0_u8; 16];
        // SAFETY: PR_GET_NAME writes at most 16 bytes, the last one a zero.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let line = line(AROUND.get(), name, info.call, argument(libc::REG_RSI));
        let mut room = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
        // SAFETY: poll has one descriptor to look at, and write reads the bytes of the line, of
        // which there are so many. Nobody waits for who does not read it.
        unsafe {
            if libc::poll(&mut room, 1, 0) == 1 {
                libc::write(2, line.bytes.as_ptr().cast(), line.len);
            }
        }
    }
    terminal::end_by(signal);
}

/// Installs the handler. What it says is an object of JSON of that VM, or for people.
pub fn install(json: Option<&str>) {
    let _ = AROUND.set(around(json));
    // SAFETY: by its text it does what is safe in a signal handler alone.
    unsafe { terminal::handle(libc::SIGSYS, handler) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(call: c_int, second: u64) -> String {
        let line = line(Some(&around(None)), b"vcpu0", call, second);
        String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
    }

    #[test]
    fn a_line_names_thread_and_call() {
        let all = said(101, 0);
        assert!(all.starts_with("wherry: thread vcpu0: system call ptrace (101) is not allowed"));
        assert!(all.ends_with("\n") && all.lines().count() == 1);
        assert!(said(16, 0x5412).contains("ioctl (16) with 0x5412 is"));
        assert!(said(16, 0xffff_ffff_0000_ae80).contains("ioctl (16) with KVM_RUN is"));
        assert!(said(9999, 0).contains("call ? (9999) is"));
        // The longest is not cut.
        let longest = super::super::requests::KVM_GET_MSR_FEATURE_INDEX_LIST;
        let line = line(
            Some(&around(Some("web"))),
            b"migration-answe",
            libc::SYS_ioctl as c_int,
            longest.number.into(),
        );
        assert!(line.len < line.bytes.len(), "{}", line.len);
        let object: serde_json::Value = serde_json::from_slice(&line.bytes[..line.len]).unwrap();
        let message = object["message"].as_str().unwrap();
        assert!(message.ends_with("only notes it") && object["level"] == "error", "{message}");
    }
}
