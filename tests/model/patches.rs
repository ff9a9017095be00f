// Mistakes put into the product's own text, and probes. Included by build.rs.

/// One mistake.
pub struct Patch {
    /// From the repository's root.
    pub file: &'static str,
    /// Its name in `Mutant`.
    pub mutant: &'static str,
    /// What the file says, exactly once.
    pub right: &'static str,
    /// What it says with the mistake, `MUTANT` being whether it is made.
    pub wrong: &'static str,
}

const HINTING: &str = "devices/src/virtio/balloon/hinting.rs";
const BALLOON: &str = "devices/src/virtio/balloon/mod.rs";
const ROUND: &str = "migration/src/round.rs";

pub const PATCHES: &[Patch] = &[
    Patch {
        file: HINTING,
        mutant: "ReplayedId",
        right: "} else if hinting.finished {",
        wrong: "} else if hinting.finished && !MUTANT {",
    },
    Patch {
        file: HINTING,
        mutant: "StaleId",
        right: "if id != hinting.saved.field {",
        wrong: "if id != hinting.saved.field && !(MUTANT && id > CMD_DONE) {",
    },
    Patch {
        file: HINTING,
        mutant: "RestBeforeAnnounced",
        right: "|| self.finished || !self.announced {",
        wrong: "|| self.finished || !(self.announced || MUTANT) {",
    },
    Patch {
        file: HINTING,
        mutant: "FirstSegment",
        right: "for (nth, desc) in descs.into_iter().enumerate() {",
        wrong: "let most = if MUTANT { 1 } else { usize::MAX };
        for (nth, desc) in descs.into_iter().enumerate().take(most) {",
    },
    Patch {
        file: HINTING,
        mutant: "CommandByLength",
        right: "if !desc.is_write_only() {",
        wrong: "if (MUTANT && desc.len() == 4) || (!MUTANT && !desc.is_write_only()) {",
    },
    Patch {
        file: HINTING,
        mutant: "NoDone",
        right: "            saved.field = CMD_DONE;",
        wrong: "            if !MUTANT { saved.field = CMD_DONE; }",
    },
    Patch {
        file: BALLOON,
        mutant: "UsedLength",
        right: "        Completion::Used(0)\n",
        wrong: "        Completion::Used(u32::from(MUTANT))\n",
    },
    Patch {
        file: "devices/src/virtio/mmio/process.rs",
        mutant: "ConsumesWhilePaused",
        right: "if self.paused || !self.live()",
        wrong: "if (self.paused && !MUTANT) || !self.live()",
    },
    Patch {
        file: "devices/src/virtio/balloon/control.rs",
        mutant: "NoEventLoop",
        right: "if !hints_available(&device) {",
        wrong: "if !hints_available(&device) && !MUTANT {",
    },
    Patch {
        file: "devices/src/virtio/balloon/stats.rs",
        mutant: "StatsTags",
        right: "if let Some(slot) = known.get_mut(usize::from(u16::from_le_bytes(*tag))) {",
        wrong: "let tag = usize::from(u16::from_le_bytes(*tag));
        if MUTANT { known[tag] = Some(0); }
        if let Some(slot) = known.get_mut(tag) {",
    },
    Patch {
        file: "devices/src/virtio/balloon/ram.rs",
        mutant: "DeflateUnderflow",
        right: "self.count -= u64::from(was);",
        wrong: "self.count = self.count.wrapping_sub(u64::from(was || MUTANT));",
    },
    Patch {
        file: "devices/src/virtio/balloon/ram.rs",
        mutant: "ReportNotClamped",
        right: "self.clip(gpa, len.min(region.end - gpa)).next()",
        wrong: "if MUTANT { return Some((gpa, len)).filter(|_| gpa % PAGE_SIZE == 0 && len >= PAGE_SIZE); }
        self.clip(gpa, len.min(region.end - gpa)).next()",
    },
    Patch {
        file: "migration/src/source/guard.rs",
        mutant: "NoDoneAfterFailure",
        right: "                hints.done();",
        wrong: "                if self.handed_off || !MUTANT { hints.done(); }",
    },
    Patch {
        file: "migration/src/source/guard.rs",
        mutant: "StaysPaused",
        right: "!self.handed_off && self.machine.resume().is_ok()",
        wrong: "!self.handed_off && !MUTANT && self.machine.resume().is_ok()",
    },
    Patch {
        file: "migration/src/source/guard.rs",
        mutant: "LogStaysOn",
        right: "if self.log_on {\n",
        wrong: "if self.log_on && !MUTANT {\n",
    },
];

/// Looks into private state; each is appended to a file of the copies.
pub const PROBES: &[(&str, &str)] = &[
    (
        HINTING,
        r#"
/// All of the hinting state that decides what a hint does, the sink apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct HintingProbe {
    pub field: u32,
    pub last_id: u32,
    pub issued: bool,
    pub stop_seen: bool,
    pub open: bool,
    pub announced: bool,
    pub finished: bool,
    pub resting: Option<u32>,
    pub in_session: bool,
    pub one_look_left: bool,
}

impl Hinting {
    pub(super) fn probe(&self) -> HintingProbe {
        let HintStateV1 { field, last_id, issued, stop_seen } = self.saved;
        let Self { open, announced, finished, resting, in_session, one_look_left, .. } = *self;
        HintingProbe { field, last_id, issued, stop_seen, open, announced, finished, resting, in_session, one_look_left }
    }

    pub(super) fn become_probe(&mut self, p: &HintingProbe, sink: Option<Arc<dyn HintRange>>) {
        self.saved = HintStateV1 { field: p.field, last_id: p.last_id, issued: p.issued, stop_seen: p.stop_seen };
        (self.open, self.announced, self.finished, self.resting, self.sink) = (p.open, p.announced, p.finished, p.resting, sink);
        (self.in_session, self.one_look_left) = (p.in_session, p.one_look_left);
    }
}
"#,
    ),
    (
        BALLOON,
        r#"
pub use self::hinting::HintingProbe;

/// What the engine does to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HintCall {
    Start,
    Rest,
    Stop,
    Done,
    Restore,
}

impl Balloon {
    pub fn probe_new(mem: Arc<GuestMemory>, backend: Arc<dyn BalloonBackend>) -> Self {
        Self::new(BalloonConfig::default(), mem, backend)
    }

    pub fn probe_become(&mut self, probe: &HintingProbe, sink: Option<Arc<dyn HintRange>>) {
        self.hinting.become_probe(probe, sink);
    }

    pub fn probe(&self) -> HintingProbe {
        self.hinting.probe()
    }

    /// Whether the driver takes its memory back, and whether it is told to look once more.
    pub fn probe_returned(&mut self, seen: bool) -> (bool, bool) {
        let mut told = false;
        let returned = self.hinting.returned(seen, || told = true);
        (returned, told)
    }

    /// Returns whether the field changed, which raises the config interrupt.
    pub fn probe_call(&mut self, call: HintCall, sink: &Arc<dyn HintRange>) -> bool {
        match call {
            HintCall::Start => self.hinting.start(sink.clone()).is_ok(),
            HintCall::Rest => self.hinting.rest(),
            HintCall::Stop => self.hinting.stop(),
            HintCall::Done => self.hinting.done(),
            HintCall::Restore => {
                let before = self.hinting.field();
                let restored = Hinting::restore(self.hinting.state());
                self.hinting = restored.unwrap_or_default();
                self.hinting.field() != before
            }
        }
    }
}
"#,
    ),
    (
        ROUND,
        r#"
/// The whole state of a round, its statistics apart.
#[derive(Clone, Debug)]
pub struct RoundProbe {
    pub number: u32,
    pub ballooned: u64,
    pub hole: u64,
    pub to_send: Bitmap,
    pub sent_map: Bitmap,
    pub hinted_map: Bitmap,
    pub clean: u64,
    pub sent: u64,
    pub zero: u64,
    pub hinted: u64,
}

impl Round {
    pub fn probe(&self) -> RoundProbe {
        RoundProbe {
            number: self.number,
            ballooned: self.ballooned,
            hole: self.hole,
            to_send: self.to_send.snapshot(),
            sent_map: self.sent_map.snapshot(),
            hinted_map: self.hinted_map.snapshot(),
            clean: self.clean,
            sent: self.sent.load(Relaxed),
            zero: self.zero.load(Relaxed),
            hinted: self.hinted.load(Relaxed),
        }
    }

    pub fn from_probe(nr_pages: u64, p: RoundProbe) -> Self {
        let plan = Plan::of(p.to_send);
        Self {
            ballooned: p.ballooned,
            hole: p.hole,
            sent_map: AtomicBitmap::from(&p.sent_map),
            hinted_map: AtomicBitmap::from(&p.hinted_map),
            clean: p.clean,
            sent: AtomicU64::new(p.sent),
            zero: AtomicU64::new(p.zero),
            hinted: AtomicU64::new(p.hinted),
            ..Self::new(p.number, nr_pages, &plan)
        }
    }
}
"#,
    ),
    (
        "migration/src/source/guard.rs",
        r#"
/// What the guard does when a migration ends, for a model.
pub fn probe_undo(vm: &SourceVm, log_on: bool, paused: bool) {
    let mut guard = Guard::new(vm);
    if log_on {
        guard.log_started();
    }
    if paused {
        guard.pausing();
    }
    drop(guard);
}
"#,
    ),
    ("migration/src/source/mod.rs", "\npub use guard::probe_undo;\n"),
];
