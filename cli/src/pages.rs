//! `wherry pages`: manual pages and completions for shells, made from the command line's grammar.

use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use wherry_vmm::control::ControlError;
use wherry_vmm::exit::Exit;

use super::{Context, file};

/// `wherry pages`
#[derive(Debug, Args)]
#[command(after_help = "They go where man and the shells look for them: man/man1, \
                  bash-completion/completions, zsh/site-functions and \
                  fish/vendor_completions.d.\n\n\
    Examples:\n  \
    wherry pages --output ~/.local/share\n  \
    wherry pages --output /usr/local/share")]
pub struct PagesArgs {
    /// A folder for files that do not depend on the machine, such as ~/.local/share
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}

/// `wherry pages`, of this grammar.
pub fn pages(
    context: &mut Context,
    args: &PagesArgs,
    grammar: Command,
) -> Result<Exit, ControlError> {
    let all =
        all(grammar).map_err(|e| ControlError::failed(format!("cannot make the pages: {e}")))?;
    for (path, content) in &all {
        let path = args.output.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| {
                ControlError::failed(format!("cannot create {}: {e}", folder.display()))
            })?;
        }
        file::replace("output", &path, content)?;
    }
    context.out.done(format!("{} files are in {}", all.len(), args.output.display()));
    Ok(Exit::Ok)
}

/// Every file: where it goes in such a folder, and what is in it.
fn all(mut grammar: Command) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    grammar.build();
    let mut all = Vec::new();
    add_manual(&grammar, None, &mut all)?;
    for (shell, path) in [
        (Shell::Bash, "bash-completion/completions/wherry"),
        (Shell::Zsh, "zsh/site-functions/_wherry"),
        (Shell::Fish, "fish/vendor_completions.d/wherry.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut grammar, "wherry", &mut script);
        all.push((path.into(), script));
    }
    Ok(all)
}

/// The page of a command, and those of its commands.
fn add_manual(
    command: &Command,
    above: Option<&str>,
    all: &mut Vec<(PathBuf, Vec<u8>)>,
) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let version = concat!("wherry ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name).source(version).manual("Wherry");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    // Long options and paths do not bear to be spread or cut.
    let plain = Roff::new().control("ad", ["l"]).control("nh", []).to_roff();
    page.extend_from_slice(plain.as_bytes());
    man.render_name_section(&mut page)?;
    page.extend_from_slice(synopsis(command).to_roff().as_bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    page.extend_from_slice(sections(&help, above).to_roff().as_bytes());
    // Each section comes with the same definitions in front.
    let (page, head) = (String::from_utf8_lossy(&page), Roff::new().render());
    let page = head.clone() + &page.replace(&head, "");
    all.push((format!("man/man1/{name}.1").into(), page.into_bytes()));
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        add_manual(below, Some(name), all)?;
    }
    Ok(())
}

/// How a command is written, as its help says it: options are described below, with their values.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).control("EX", []);
    for line in usage.trim_start_matches("Usage:").lines() {
        roff.text([roman(line.trim_start())]);
    }
    roff.control("EE", []);
    roff
}

/// What a command's help says behind its options. A part that begins with its title becomes a
/// section and keeps its lines, as examples must; the others are notes.
fn sections(help: &str, above: Option<&str>) -> Roff {
    let mut roff = Roff::new();
    let titled = |part: &&str| part.lines().next().is_some_and(|line| line.ends_with(':'));
    let (titled, notes): (Vec<&str>, Vec<&str>) =
        help.split("\n\n").filter(|part| !part.is_empty()).partition(titled);
    for (nth, note) in notes.into_iter().enumerate() {
        match nth {
            0 => roff.control("SH", ["NOTES"]),
            _ => roff.control("PP", []),
        };
        roff.text([roman(note)]);
    }
    for part in titled {
        let (title, lines) = part.split_once(":\n").unwrap_or((part, ""));
        let title = match title {
            "Exit codes" => "EXIT STATUS".to_owned(),
            title => title.to_uppercase(),
        };
        roff.control("SH", [title.as_str()]).control("EX", []);
        for line in lines.lines() {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        roff.control("EE", []);
    }
    if let Some(above) = above {
        roff.control("SH", ["SEE ALSO"]).text([bold(above), roman("(1)")]);
    }
    roff
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command as Process;

    use clap::CommandFactory;

    use wherry_tests::needs::GROFF;

    use super::*;
    use crate::args::Cli;

    fn manual() -> BTreeMap<String, String> {
        let page = |(path, text): (PathBuf, Vec<u8>)| {
            let name = path.to_str()?.strip_prefix("man/man1/")?.strip_suffix(".1")?.to_owned();
            Some((name, String::from_utf8(text).unwrap()))
        };
        all(Cli::command()).unwrap().into_iter().filter_map(page).collect()
    }

    fn section<'a>(page: &'a str, title: &str) -> &'a str {
        let (_, text) = page.split_once(&format!("\n.SH {title}\n")).unwrap_or_default();
        text.split("\n.SH ").next().unwrap_or_default()
    }

    #[test]
    fn every_command_has_a_page_with_its_options_and_examples() {
        let pages = manual();
        let mut grammar = Cli::command();
        grammar.build();
        let mut nr = 1;
        for command in grammar.get_subcommands().filter(|command| !command.is_hide_set()) {
            let page = &pages[&format!("wherry-{}", command.get_name())];
            nr += 1 + command.get_subcommands().count();
            let about = command.get_about().unwrap().to_string();
            let about = about.replace('-', r"\-").replace('\'', r"\*(Aq");
            assert!(section(page, "DESCRIPTION").contains(&about), "{page}");
            let usage = format!(".EX\nwherry {} ", command.get_name().replace('-', r"\-"));
            assert!(section(page, "SYNOPSIS").starts_with(&usage), "{page}");
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                let Some(long) = option.get_long() else { continue };
                let long = format!(r"\-\-{}", long.replace('-', r"\-"));
                assert!(section(page, "OPTIONS").contains(&long), "{long}: {page}");
            }
            let help = command.get_after_help().unwrap().to_string();
            let examples = help.lines().filter(|line| line.starts_with("  wherry ")).count();
            let shown = section(page, "EXAMPLES");
            let lines = shown.lines().filter(|line| line.starts_with("wherry "));
            assert!(shown.starts_with(".EX\n") && shown.contains(".EE"), "{page}");
            assert_eq!(lines.count(), examples, "{page}");
            assert!(section(page, r#""SEE ALSO""#).contains(r"\fBwherry\fR(1)"), "{page}");
        }
        assert_eq!(pages.len(), nr, "{:?}", pages.keys());
        let whole = &pages["wherry"];
        assert!(section(whole, r#""EXIT STATUS""#).contains("\n128 + N  ended by signal N\n"));
        assert!(section(whole, "FILES").contains("$WHERRY_RUNTIME_DIR"), "{whole}");
    }

    #[test]
    fn shells_complete_commands_and_take_the_scripts() {
        let dir = tempfile::tempdir().unwrap();
        for (path, script) in all(Cli::command()).unwrap() {
            let shell = path.iter().next().unwrap().to_str().unwrap();
            if shell == "man" {
                continue;
            }
            let text = String::from_utf8(script).unwrap();
            assert!(text.contains("downtime-limit") && text.contains("boot-files"), "{shell}");
            if shell == "bash-completion" {
                let file = dir.path().join("wherry");
                std::fs::write(&file, text).unwrap();
                let ask = "source \"$0\"; COMP_WORDS=(wherry mig) COMP_CWORD=1; \
                           _wherry wherry mig wherry; echo \"${COMPREPLY[@]}\"";
                let said = Process::new("bash").args(["-c", ask]).arg(&file).output().unwrap();
                assert_eq!(String::from_utf8_lossy(&said.stdout), "migrate\n", "{said:?}");
            }
        }
    }

    #[test]
    fn groff_has_nothing_against_the_pages() {
        if GROFF.or_not_run(Process::new("groff").arg("--version").output()).is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for (name, page) in manual() {
            let file = dir.path().join(&name);
            std::fs::write(&file, page).unwrap();
            let mut groff = Process::new("groff");
            groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(&file);
            let said = groff.output().unwrap();
            let words = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success() && words.is_empty(), "{name}: {words}");
        }
    }
}
