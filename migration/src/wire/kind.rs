//! What frames there are.

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// Source: what I speak.
    Hello = 1,
    /// Source: a round begins.
    Round = 2,
    /// Source: guest memory.
    Pages = 3,
    /// Source: nothing to send at the moment, still here.
    Idle = 4,
    /// Source: part of the machine state.
    State = 5,
    /// Source: the state is complete.
    StateEnd = 6,
    /// Source: the guest is yours. Never sent twice, never taken back.
    HandOff = 7,
    /// Source: what does this chunk of memory hold?
    Verify = 8,
    /// Source: guest memory whose content is compressed.
    PagesLz4 = 9,
    /// Source: the data connections that there are.
    Streams = 10,
    /// Source, first on a data connection: which one this is.
    Join = 11,
    /// Source, on every connection: the memory of this round is complete.
    Sync = 12,
    /// Source: what machine this is.
    Machine = 13,
    /// Source: what the machine boots at a reset.
    Boot = 14,
    /// Source: part of a file that it boots.
    BootPart = 15,
    /// Destination: what we speak.
    Welcome = 16,
    /// Destination: memory and state are in place, nothing runs.
    Loaded = 17,
    /// Destination: the guest runs here.
    Running = 18,
    /// Destination: digests of the chunk.
    Digests = 19,
    /// Destination: the machine is built.
    Ready = 20,
    /// Destination: which files that takes are not here.
    BootWanted = 21,
    /// Either: I give up, and why.
    Abort = 32,
}

impl Kind {
    /// The kind of this number.
    pub fn from_u16(kind: u16) -> Option<Self> {
        use Kind::*;
        let all = [
            Hello, Round, Pages, Idle, State, StateEnd, HandOff, Verify, PagesLz4, Streams, Join,
            Sync, Machine, Boot, BootPart, Welcome, Loaded, Running, Digests, Ready, BootWanted,
            Abort,
        ];
        all.into_iter().find(|k| *k as u16 == kind)
    }
}
