//! Exit codes for the command line.

pub use wherry_vmm::exit::{Exit, Failure};

/// For `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  no VM of that name
  4  not possible with this host's KVM (see `wherry doctor`)
  5  the migration failed or was cancelled; the guest goes on at the source, unless the
     message says that it has ended
  6  the outcome of the migration is unknown
  7  the guest crashed or was killed (run, receive)
  8  the guest was migrated, but the --trace or --report file could not be written
  128 + N  ended by signal N

Files:
  Control sockets of running VMs are in $WHERRY_RUNTIME_DIR, else $XDG_RUNTIME_DIR/wherry,
  else /run/wherry (root), else /tmp/wherry-UID.";
