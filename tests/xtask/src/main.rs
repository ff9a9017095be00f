//! Developer commands of Wherry: `cargo xtask setup | lab -- CMD | test | model | demo | bench |
//! ci`.
//!
//! - [`setup`]: installs or names what is missing.
//! - [`lab`]: a place where `/dev/kvm` is real: this machine, or a KVM host in software emulation.
//! - [`build`]: cargo invocations, among them the guest's static init.
//! - [`note`]: what is said meanwhile. [`deny`]: cargo-deny.
//! - [`images`]: stock kernels and the initramfs images for them.
//! - [`image`]: disk images of a stock Debian. [`debians`]: those that tests boot. [`signals`]:
//!   Ctrl-C. [`deb`]: a Debian package.
//! - [`model`]: the model checker.
//! - [`house`]: rules for the source: circles, who may import whom, width; and its size.
//! - [`testing`], [`demo`], [`vm_demo`], [`mod@bench`] and [`devices`]: what runs in the lab;
//!   [`inside`]: the part of the tests that is there, [`calls`]: what their VMs ask of its kernel.
//!   [`intel`]: those on an Intel CPU. [`filters`]: a benchmark outside of it.

mod bench;
mod build;
mod calls;
mod deb;
mod debians;
mod demo;
mod deny;
mod devices;
mod filters;
mod host;
mod house;
mod image;
mod images;
mod inside;
mod intel;
mod lab;
mod model;
mod note;
mod peer;
mod releases;
mod setup;
mod signals;
mod table;
mod testing;
mod vm_demo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of Wherry.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing (as root), or print the one command that does; fetch kernels, build
    /// the guest images.
    #[command(
        after_help = "Examples:\n  cargo xtask setup          # everything that tests and demo \
                      need\n  \
                            cargo xtask setup --check  # only say what is missing; exit code 1 if \
                            anything is"
    )]
    Setup(setup::Args),
    /// Run a command where /dev/kvm is real; its output and exit code are the command's.
    ///
    /// If this machine's KVM can boot Linux the command runs here. Else it runs in a KVM host under
    /// QEMU's software emulation, with this machine's files as its root: changes stay in the lab's
    /// memory and are gone afterwards, except in folders given with --rw. Unix sockets work
    /// everywhere but below --rw folders.
    ///
    /// --intel is another host, with an Intel CPU, emulated by Bochs (fetched, not installed): some
    /// 100 million instructions a second, one CPU, 2 GiB, up after 15 s. It has no more files than
    /// it is given, no standard input, no disks and no network.
    #[command(after_help = "Examples:\n  cargo xtask lab -- ls -l /dev/kvm\n  \
                            cargo xtask lab --intel -- target/release/wherry doctor\n  \
                            cargo xtask lab --rw /tmp/out -- sh -c 'dmesg > /tmp/out/dmesg.txt'\n  \
                            cargo xtask lab --timeout 300 --copy target/release/wherry:/run/wherry \
                            -- /run/wherry doctor\n\n\
                            Environment: WHERRY_LAB=qemu|host chooses the lab; WHERRY_LAB_MEM \
                            (MiB) and WHERRY_LAB_CPUS size it.")]
    Lab(lab::Args),
    /// Build everything, run the unit tests here and the integration tests in the lab.
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --filter boot\n  cargo \
                      xtask test --soak\n  \
                            cargo xtask test --soak --integration --filter soak_ --migrations 50 \
                            --minutes 10\n  \
                            cargo xtask test --soak --integration --filter intel   # what runs on \
                            an emulated Intel CPU\n  \
                            cargo xtask test --units   # only what needs no KVM\n  \
                            cargo xtask test --host   # on this machine's own KVM, and a report"
    )]
    Test(testing::Args),
    /// Migrate a stock Linux guest with hints off and on, and print what went over the wire.
    #[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --vm\n  \
                            cargo xtask demo --json demo.json")]
    Demo(demo::Args),
    /// Explore the hint race in every order, with and without deliberate mistakes, and print the
    /// tables.
    #[command(after_help = "Examples:\n  cargo xtask model\n  cargo xtask model -- list\n  \
                            cargo xtask model -- explore checked --mistake LookBeforeProtect   # \
                            prints the way there\n  \
                            cargo xtask model -- walk large-checked --walks 1000000\n  \
                            cargo xtask model -- replay large-checked 17")]
    Model(model::Args),
    /// Measure migrations of many kinds, against another VMM too, and report.
    #[command(
        after_help = "Examples:\n  cargo xtask bench --quick --peer qemu --html bench.html\n  \
                            cargo xtask bench idle-1g --runs 5 --json idle.json\n  \
                            cargo xtask bench --devices --runs 3   # throughput of disks and \
                            network\n  \
                            cargo xtask bench /tmp/my-case.toml\n  \
                            cargo xtask bench --from old.json --html old.html   # only the report\n\
                            \n\
                            A case is a file of a few lines: see tests/bench/cases and \
                            docs/bench/README.md."
    )]
    Bench(bench::Args),
    /// Build a disk image of a stock Debian, or find it in the cache, and print where it is.
    ///
    /// It is made from Debian's unmodified packages, which apt fetches and verifies. Who may log in
    /// comes through systemd's credentials: there is no password and no key in it.
    #[command(after_help = "Examples:\n  cargo xtask image --out root.raw\n  \
                      cargo xtask image --release trixie --kernel generic --with test\n  \
                      cargo xtask image --with postgres --size 8192 --json")]
    Image(image::Args),
    /// Build a Debian package of the programs, their pages and units, and print where it is.
    #[command(after_help = "Examples:\n  cargo xtask deb\n  cargo xtask deb --check")]
    Deb(deb::Args),
    /// Check the rules of the house (no circles among files, who may import whom, width of lines)
    /// and count its lines.
    #[command(after_help = "Examples:\n  cargo xtask house\n  cargo xtask house --count --json")]
    House(house::Args),
    /// What the continuous integration runs: setup, formatting, rules of the house, lints,
    /// dependencies (with cargo-deny), documentation, test.
    #[command(
        after_help = "Examples:\n  cargo xtask ci\n  cargo xtask ci --quick  # all but the tests"
    )]
    Ci(testing::CiArgs),
    /// Run integration tests one by one (what `test` runs in the lab).
    #[command(hide = true)]
    RunTests(inside::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(args) => setup::main(&args),
        Command::Lab(args) => lab::main(&args),
        Command::Test(args) => testing::main(&args),
        Command::Model(args) => model::main(&args),
        Command::Demo(args) => demo::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Image(args) => image::main(&args),
        Command::Deb(args) => deb::main(&args),
        Command::House(args) => house::main(&args),
        Command::Ci(args) => testing::ci(&args),
        Command::RunTests(args) => inside::main(&args),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;
    use wherry_tests::docs::{self, Shown};

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    fn mistakes(all: &[Shown]) -> Vec<String> {
        let mistake = |shown: &Shown| {
            // `cargo xtask` is one word to the parser.
            let words =
                ["cargo xtask"].into_iter().chain(shown.words.iter().skip(2).map(String::as_str));
            let error = Cli::try_parse_from(words).err()?;
            let fine = match error.kind() {
                ErrorKind::DisplayHelp => true,
                ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => false,
                // A sentence may name an option without its value.
                _ => !shown.whole,
            };
            (!fine).then(|| format!("{}: {}: {error}", shown.place, shown.words.join(" ")))
        };
        all.iter().filter_map(mistake).collect()
    }

    #[test]
    fn commands_of_readme_docs_and_help_are_understood() {
        let program = ["cargo", "xtask"];
        let mut all = docs::commands(&program).unwrap();
        assert!(all.iter().filter(|shown| shown.whole).count() > 20, "{all:?}");
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines = help.lines().filter(|line| line.trim_start().starts_with("cargo xtask "));
            all.extend(lines.flat_map(|line| docs::in_line(command.get_name(), line, &program)));
        }
        assert_eq!(mistakes(&all), Vec::<String>::new());
        let wrong = "```\ncargo xtask bench --peers qemu\n```\n`cargo xtask test --unit`";
        assert_eq!(mistakes(&docs::in_markdown("f", wrong, &program)).len(), 2);
    }
}
