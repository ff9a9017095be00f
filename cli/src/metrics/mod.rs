//! `wherry metrics`: figures of all VMs in Prometheus' text format.

mod figures;
mod text;

use std::path::PathBuf;

use clap::Args;
use wherry_vmm::control::ControlError;
use wherry_vmm::exit::Exit;

use super::all_vms::{self, Answer};
use super::{Context, file};
use text::Families;

/// `wherry metrics`
#[derive(Debug, Args)]
#[command(
    after_help = "A VM that does not answer within 2 s has wherry_vm_up 0 and nothing else. With \
                  --output the file is replaced at once and as a whole, for node_exporter's \
                  textfile collector.\n\n\
    Examples:\n  \
    wherry metrics\n  \
    wherry metrics | grep wherry_vm_up\n  \
    wherry metrics --output /var/lib/prometheus/node-exporter/wherry.prom"
)]
pub struct MetricsArgs {
    /// Write them into this file instead
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `wherry metrics`
pub fn metrics(context: &mut Context, args: &MetricsArgs) -> Result<Exit, ControlError> {
    let vms = all_vms::ask(&context.dir)?;
    for vm in &vms {
        if let Err(error) = &vm.info {
            context.out.remark(format!("{}: {error}", vm.name));
        }
    }
    let families = families(&vms);
    match &args.output {
        Some(path) => {
            file::replace("output", path, families.text().as_bytes())?;
            if context.out.json {
                context.out.document(&serde_json::json!({"ok": true}));
            }
        }
        None if context.out.json => {
            context.out.document(&serde_json::json!({"metrics": families}));
        }
        None => context.out.line(families.text().trim_end()),
    }
    Ok(Exit::Ok)
}

/// All of it.
pub fn families(vms: &[Answer]) -> Families {
    let mut all = Families::default();
    figures::build(&mut all);
    for vm in vms {
        let mut of = figures::Of { all: &mut all, vm: &vm.name, uid: vm.uid };
        of.up(vm.info.is_ok());
        if let Ok(info) = &vm.info {
            of.info(info);
        }
    }
    all
}
