//! `wherry doctor`

mod diagnose;
mod guest;
mod probe;

use std::process::Command;

use wherry_vmm::control::{ControlError, ErrorCode};
use wherry_vmm::exit::Exit;
use wherry_vmm::kvm::{self, Finding, Verdict};

use super::Context;
use super::args::DoctorArgs;
use probe::Status;

/// Measures KVM and says what was found.
pub fn doctor(context: &mut Context, args: &DoctorArgs) -> Result<Exit, ControlError> {
    if args.probe {
        let kvm = kvm::open(&args.device).map_err(|found| no_kvm(&found))?;
        // The parent notices how this ends.
        let _ = probe::run(&kvm, &mut std::io::stdout());
        return Ok(Exit::Ok);
    }
    let own = std::env::current_exe()
        .map_err(|e| ControlError::failed(format!("cannot find my own executable: {e}")))?;
    let mut command = Command::new(own);
    command.args(["doctor", "--probe", "--device"]).arg(&args.device);
    let report = diagnose::diagnose(&args.device, command);
    if context.out.json {
        context.out.document(&report);
    } else {
        let Finding { verdict, summary, .. } = &report.found;
        context.out.line(format!("{}: {summary}", verdict.as_str()));
        if !report.details.is_empty() {
            context.out.line("");
        }
        let width = report.details.iter().map(|d| d.check.len()).max().unwrap_or(0);
        for detail in &report.details {
            let mark = match detail.status {
                Status::Ok => "ok",
                Status::Note => "-",
                Status::Software => "soft",
                Status::Bad => "BAD",
            };
            context.out.line(format!("  {mark:<4}  {:<width$}  {}", detail.check, detail.text));
        }
        if !report.found.advice.is_empty() {
            context.out.line("\nWhat to do:");
        }
        for advice in &report.found.advice {
            context.out.line(format!("  - {advice}"));
        }
    }
    Ok(if report.found.verdict == Verdict::Good { Exit::Ok } else { Exit::Kvm })
}

/// The error of a command that needs KVM.
pub fn no_kvm(found: &Finding) -> ControlError {
    let error = ControlError::new(ErrorCode::Kvm, found.summary.clone());
    match found.advice.first() {
        Some(advice) => error.hint(format!("{advice} (more: wherry doctor)")),
        None => error.hint("run `wherry doctor` to see more"),
    }
}
