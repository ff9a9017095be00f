//! One error type for the host side; each text says what to do where something can be done.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong while provisioning kernels and packing images.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb, for example `read`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program is not installed.
    #[error("`{program}` is not installed; it comes with the package {package}")]
    NoProgram {
        /// The program's name.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program ran and failed.
    #[error("`{command}` failed: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// The last lines of its error output.
        stderr: String,
    },
    /// The package archive has no such kernel.
    #[error("{0}")]
    NoKernel(String),
    /// A kernel image or module is not what it should be.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A module that an image needs does not exist for this kernel.
    #[error("kernel {kernel} has no module `{module}`")]
    NoModule {
        /// Kernel release.
        kernel: String,
        /// Module name.
        module: String,
    },
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// Attaches the verb and the path to an I/O error.
pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}
