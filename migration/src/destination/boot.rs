//! What the machine boots at a reset, and the files of it that are not here.
//!
//! Every length is known, and within its limit, before anything is kept; a file is as long as was
//! announced, to the byte, and has the announced digest.

use std::io::Write;

use super::Receiver;
use crate::error::Error;
use crate::traits::DestinationVm;
use crate::wire::boot::{Boot, BootWanted, Digest, FileId};
use crate::wire::{Kind, WireError};

impl Receiver<'_> {
    /// Hears what it is, asks for what is not here, and takes that.
    pub(super) fn take_boot(&mut self, vm: &mut dyn DestinationVm) -> Result<(), Error> {
        self.next_or_idle(Kind::Boot, "before what the machine boots")?;
        let boot: Boot = self.reader.control(Kind::Boot)?;
        boot.check()?;
        let sinks = vm.boot(&boot.description, &boot.files);
        let sinks = sinks.map_err(Error::machine("take what it boots"))?;
        let wanted = BootWanted { files: sinks.iter().map(Option::is_some).collect() };
        self.writer.send_control(Kind::BootWanted, &wanted)?;
        for (file, sink) in boot.files.iter().zip(sinks) {
            if let Some(mut sink) = sink {
                self.take_file(file, &mut *sink)?;
            }
        }
        Ok(())
    }

    fn take_file(&mut self, file: &FileId, sink: &mut dyn Write) -> Result<(), Error> {
        let (mut left, mut digest) = (file.len, Digest::default());
        while left > 0 {
            self.next_or_idle(Kind::BootPart, "in a file that it boots")?;
            let part = self.reader.payload();
            if part.is_empty() {
                return Err(WireError::Boot("an empty part of a file").into());
            }
            left = left
                .checked_sub(part.len() as u64)
                .ok_or(WireError::Boot("a file is longer than announced"))?;
            digest.update(part);
            sink.write_all(part).map_err(Error::machine("keep what it boots"))?;
            self.report_now_and_then();
        }
        match digest.finish() == file.digest {
            true => Ok(()),
            false => Err(WireError::Boot("a file is not the announced one").into()),
        }
    }

    fn next_or_idle(&mut self, kind: Kind, during: &'static str) -> Result<(), Error> {
        loop {
            // A source that is never silent would keep the reader from looking.
            self.reader.interrupt.check()?;
            if self.reader.next(&[kind, Kind::Idle], during)? == kind {
                return Ok(());
            }
        }
    }
}
