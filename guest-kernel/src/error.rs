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
    /// The package archive has no such kernel or package, or no lists of it are here.
    #[error("{0}")]
    NoPackage(String),
    /// A word is none of those that are known here.
    #[error("no {what} is called `{given}`; there are {known}")]
    Unknown {
        /// What was asked for, for example `release`.
        what: &'static str,
        /// The word.
        given: String,
        /// All that would do.
        known: String,
    },
    /// An image's size is out of bounds.
    #[error("an image of {given} MiB: its size must be from {least} to {most} MiB")]
    Size {
        /// The size that was asked for.
        given: u32,
        /// The smallest.
        least: u32,
        /// The largest.
        most: u32,
    },
    /// No sources of packages to build an image from.
    #[error(
        "apt's sources here name no Debian archive; an image is built from its packages, fetched \
         from where this machine fetches its own"
    )]
    NoArchive,
    /// The public keys of Debian's archive are not here.
    #[error("{} is missing, without which no package can be verified; it comes with the package \
             debian-archive-keyring", path.display())]
    NoKeyring {
        /// Where they should be.
        path: PathBuf,
    },
    /// Building an image needs root.
    #[error("building an image needs root, whose files it is full of")]
    NotRoot,
    /// A finished image is not what the recipe promises.
    #[error("the image is not as it should be: {0}")]
    NotAsPromised(String),
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
