//! See the library.

fn main() -> std::process::ExitCode {
    wherry_cli::main()
}
