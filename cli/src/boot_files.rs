//! `wherry boot-files`: what a disk image would boot.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use wherry_rootfs::{FileInfo, Reader};
use wherry_vmm::control::ControlError;
use wherry_vmm::exit::Exit;

use super::Context;
use super::units::show_bytes;

/// `wherry boot-files`
#[derive(Debug, Args)]
#[command(
    after_help = "The root file system is ext4, in a partition (GPT) or without any. The image is \
                  not changed and not trusted: a confined process reads it.\n\n\
    Examples:\n  \
    wherry boot-files debian.raw\n  \
    wherry boot-files debian.raw --json | jq -r .cmdline"
)]
pub struct BootFilesArgs {
    /// Raw disk image or block device
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

/// `wherry boot-files IMAGE`
pub fn boot_files(context: &mut Context, args: &BootFilesArgs) -> Result<Exit, ControlError> {
    let path = args.image.display();
    let image = open(&args.image)?;
    let found = Reader::default().read(&image).map_err(|e| {
        ControlError::failed(format!("{path}: {:#}", anyhow::Error::new(e)))
            .hint("`wherry run --kernel FILE --initrd FILE` boots a kernel of the host's")
    })?;
    let out = &mut context.out;
    if !found.landlock {
        out.remark("wherry: this host's kernel has no Landlock: seccomp and limits confined alone");
    }
    let listing = &found.listing;
    if out.json {
        let file = |file: &FileInfo| json!({"path": file.path, "bytes": file.len});
        out.document(&json!({
            "kernel": file(&listing.kernel),
            "initrd": listing.initrd.as_ref().map(file),
            "uuid": listing.uuid(),
            "partition": listing.partition.map(|partition| partition.number),
            "cmdline": listing.cmdline(),
        }));
        return Ok(Exit::Ok);
    }
    let file = |file: &FileInfo| format!("{} ({})", file.path, show_bytes(file.len));
    out.line(format!("kernel   {}", file(&listing.kernel)));
    out.line(format!("initrd   {}", listing.initrd.as_ref().map_or("none".into(), file)));
    let place = listing.partition.map(|partition| format!(", partition {}", partition.number));
    out.line(format!("root     ext4 {}{}", listing.uuid(), place.unwrap_or_default()));
    out.line(format!("cmdline  {}", listing.cmdline()));
    Ok(Exit::Ok)
}

/// Opens a file or block device; a FIFO would wait for somebody to write.
fn open(path: &Path) -> Result<File, ControlError> {
    let failed = |why: String| ControlError::failed(format!("image {}: {why}", path.display()));
    let kind = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failed("neither a file nor a block device".into()));
    }
    File::open(path).map_err(|e| failed(e.to_string()))
}
