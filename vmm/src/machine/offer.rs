//! How a destination is told what a machine does at a reset.
//!
//! It is beside the description, which older versions of Wherry read too: they refuse what they do
//! not know, and a reset ends the guest there.

use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use wherry_codec::CodecError;
use wherry_codec::records::{Format, Records, Writer};
use wherry_migration::CancelToken;
use wherry_migration::wire::boot::MAX_FILE;

use super::state::{Description, StateError, push};
use crate::boot::credential::{self, Credential};
use crate::boot::kept::{Kept, MAX_KERNEL};
use crate::boot::smbios::Firmware;
use crate::boot::source::{Source, Sources};

const RESET: Format =
    Format { magic: *b"WHRYBOOT", version: 1, flags: 0, most: 2, what: "description of a reset" };

/// Where the kernel is. The record `reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetV1 {
    /// Nowhere: a reset ends the VM.
    Ends,
    /// In the first disk.
    Disk,
    /// In files: the kernel, and an initrd if the description names one.
    Files,
}

/// The record `firmware`.
#[derive(Debug, Serialize, Deserialize)]
struct FirmwareV1 {
    uuid: [u8; 16],
    credentials: Vec<(String, Vec<u8>)>,
}

/// What a destination is told.
#[derive(Debug)]
pub struct Offer {
    /// Where the kernel is.
    pub reset: ResetV1,
    /// Kernel and initrd.
    pub files: Vec<Kept>,
    /// Why a reset there ends the VM, though it does not here.
    pub ends: Option<String>,
}

impl Description {
    /// What a destination is to be told. Reads the files that the machine boots, as a reset here
    /// would: what is in them now. One who cancels wants nothing of it.
    pub fn offer(&self, cancel: &CancelToken) -> Offer {
        if !self.reset.boots {
            return Offer { reset: ResetV1::Ends, files: vec![], ends: None };
        }
        if self.kernel.is_in_disk() {
            return Offer { reset: ResetV1::Disk, files: vec![], ends: None };
        }
        match self.files(cancel) {
            Ok(files) => Offer { reset: ResetV1::Files, files, ends: None },
            Err(e) => Offer { reset: ResetV1::Ends, files: vec![], ends: Some(format!("{e:#}")) },
        }
    }

    fn files(&self, cancel: &CancelToken) -> anyhow::Result<Vec<Kept>> {
        let Sources { kernel, initrd } = &self.reset.sources;
        let given = self.kernel.initrd.as_ref().map(|path| ("initrd", path, initrd, MAX_FILE));
        let all = [Some(("kernel", &self.kernel.path, kernel, MAX_KERNEL)), given];
        let read = |(what, path, source, most): (_, &PathBuf, &Option<Source>, _)| {
            let kept = source.as_ref().context("is not open");
            kept.and_then(|source| source.keep(most, cancel))
                .with_context(|| format!("{what} {}", path.display()))
        };
        all.into_iter().flatten().map(read).collect()
    }

    /// For a destination.
    ///
    /// # Errors
    /// None: plain data can always be encoded.
    pub fn encode_reset(&self, reset: ResetV1) -> Result<Vec<u8>, CodecError> {
        let Firmware { uuid, credentials } = &self.reset.firmware;
        let credentials = credentials.iter().map(Credential::parts);
        let credentials = credentials.map(|(name, value)| (name.to_owned(), value.to_vec()));
        let firmware = FirmwareV1 { uuid: *uuid, credentials: credentials.collect() };
        let mut out = Writer::new(&RESET, 0);
        push(&mut out, "reset", "reset", 1, &reset)?;
        push(&mut out, "firmware", "firmware", 1, &firmware)?;
        Ok(out.finish())
    }

    /// From the peer, which may lie. `files` is how many it has for it.
    ///
    /// # Errors
    /// Malformed, beyond what a guest can be given, or not of this machine.
    pub fn decode_reset(
        &self,
        bytes: &[u8],
        files: usize,
    ) -> Result<(ResetV1, Firmware), StateError> {
        let mut records = Records::read(&RESET, bytes)?;
        let reset: ResetV1 = records.take("reset", "reset", 1)?;
        let FirmwareV1 { uuid, credentials } = records.take("firmware", "firmware", 1)?;
        let unsupported = |e: anyhow::Error| StateError::Unsupported(e.to_string());
        let credentials =
            credentials.into_iter().map(|(name, value)| Credential::new(&name, value));
        let credentials = credentials.collect::<Result<Vec<_>, _>>().map_err(unsupported)?;
        credential::check(&credentials).map_err(unsupported)?;
        let right = match reset {
            ResetV1::Ends => files == 0,
            ResetV1::Disk => files == 0 && self.kernel.is_in_disk() && self.boot_disk().is_some(),
            ResetV1::Files => {
                let all = 1 + usize::from(self.kernel.initrd.is_some());
                !self.kernel.is_in_disk() && files == all
            }
        };
        if !right {
            return Err(StateError::Unsupported(format!("{files} files to boot from ({reset:?})")));
        }
        Ok((reset, Firmware { uuid, credentials }))
    }
}

#[cfg(test)]
#[path = "offer_tests.rs"]
mod tests;
