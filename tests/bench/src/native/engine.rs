//! Wherry's engine between two memories, with a machine around them that has nothing to do.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use wherry_devices::virtio::balloon::BalloonHandle;
use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{DestinationVm, DirtyLog, GuestRam, Machine, SourceVm};
use wherry_migration::transport::tls::Client;
use wherry_migration::{
    CancelToken, DestinationConfig, Endpoint, HintPolicy, Listener, SourceConfig, await_source,
    connect, migrate, receive_from,
};
use wherry_vmm::memory::{Backing, PAGE, Ram};

use super::pause::balloon;
use super::way::Way;

/// The source's machine and its dirty log: its guest does not run.
struct Still;

impl DirtyLog for Still {
    fn start(&self) -> io::Result<()> {
        Ok(())
    }

    fn protect(&self, _first: u64, _nr: u64) -> io::Result<()> {
        Ok(())
    }

    /// Nothing has been written.
    fn harvest(&self, _out: &mut Bitmap) -> io::Result<()> {
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Machine for Still {
    fn pause(&self) -> io::Result<()> {
        Ok(())
    }

    fn resume(&self) -> io::Result<()> {
        Ok(())
    }

    fn hand_over(&self, _begun: bool) -> io::Result<()> {
        Ok(())
    }

    fn describe(&self, _version: u16) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn save(&self, _version: u16) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

/// The source's end, with its certificates in a folder if it is over TLS. Returns the bytes on the
/// wire when the destination has all.
pub fn send(way: Way, ram: &Arc<Ram>, to: &Endpoint, certificates: &Path) -> Result<u64> {
    let machine = Arc::new(Still);
    let vm = SourceVm { ram: ram.clone(), log: machine.clone(), hints: None, machine };
    let cancel = CancelToken::new();
    let limit = Duration::from_secs(5);
    let transport = match to {
        Endpoint::Tls(_) => Client::load(certificates, None)?.connect(to, limit, &cancel)?,
        _ => connect(to, limit, &cancel)?,
    };
    let config = SourceConfig {
        hints: HintPolicy::Off,
        compression: way.compression,
        streams: way.streams,
        ..SourceConfig::default()
    };
    let report = migrate(&vm, transport, &config, &(), &cancel)?;
    ensure!(report.sent >= ram.nr_pages(), "{} pages were sent", report.sent);
    Ok(report.total_bytes)
}

/// The destination's machine.
struct Empty {
    backing: Backing,
    ram: Option<Arc<Ram>>,
    balloon: Option<BalloonHandle>,
}

impl DestinationVm for Empty {
    fn prepare(&mut self, _description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        let ram = Ram::new(nr_pages * PAGE, &self.backing).map_err(io::Error::other)?;
        Ok(self.ram.insert(Arc::new(ram)).clone())
    }

    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        if let Some(ram) = self.ram.as_ref().filter(|_| !state.is_empty()) {
            self.balloon = Some(balloon::load(ram, state)?);
        }
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The destination's end; its memory is in a folder, if there is one.
pub fn receive(listener: Listener, folder: Option<&Path>) -> Result<Arc<Ram>> {
    let (config, cancel) = (DestinationConfig::default(), CancelToken::new());
    let arrival = await_source(listener, &config, &cancel, &mut |_, _| ())?;
    let mut vm = Empty { backing: Backing::open(folder)?, ram: None, balloon: None };
    let received = receive_from(arrival, &mut vm, &config, &(), &cancel)?;
    ensure!(received.acknowledged, "the source does not know that all is here");
    vm.ram.context("there is no memory")
}
