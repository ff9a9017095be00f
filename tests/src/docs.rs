//! Commands that README, docs and help texts show, for tests that hold them against what the
//! commands take.

use std::path::{Path, PathBuf};

/// A command as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// File and line.
    pub place: String,
    /// Its words, the program first.
    pub words: Vec<String>,
    /// Shown to be typed as it is; else part of a sentence, where a command may be named without
    /// all that it needs.
    pub whole: bool,
}

/// The repository.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Commands of `program` (one or more words) in the pages at the root and in docs.
///
/// # Errors
/// A file cannot be read.
pub fn commands(program: &[&str]) -> std::io::Result<Vec<Shown>> {
    let pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];
    let mut files: Vec<PathBuf> = pages.iter().map(|page| root().join(page)).collect();
    files_below(&root().join("docs"), "md", &mut files)?;
    let mut all = Vec::new();
    for file in files {
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        all.extend(in_markdown(&name, &std::fs::read_to_string(&file)?, program));
    }
    Ok(all)
}

/// All files with this extension below a folder, in order.
///
/// # Errors
/// A folder cannot be listed.
pub fn files_below(
    folder: &Path,
    extension: &str,
    files: &mut Vec<PathBuf>,
) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files_below(&path, extension, files)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    Ok(())
}

/// Commands in the code blocks and in the `code` of a Markdown text.
pub fn in_markdown(name: &str, text: &str, program: &[&str]) -> Vec<Shown> {
    let mut all = Vec::new();
    let mut in_block = false;
    let mut broken = String::new();
    for (nr, line) in text.lines().enumerate() {
        let place = format!("{name}:{}", nr + 1);
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            // A line that goes on in the next one.
            if let Some(part) = line.strip_suffix('\\') {
                broken.push_str(part.trim_end());
                broken.push(' ');
                continue;
            }
            let line = std::mem::take(&mut broken) + line.trim_start();
            all.extend(in_line(&place, &line, program));
        } else {
            all.extend(in_sentence(&place, line, program));
        }
    }
    all
}

/// Commands of `program` in a line for a shell, which may have a prompt, several commands and a
/// remark at its end.
pub fn in_line(place: &str, line: &str, program: &[&str]) -> Vec<Shown> {
    let commands = shell(line.trim());
    let all = commands.into_iter().filter_map(|words| of_program(words, program));
    all.map(|words| Shown { place: place.to_owned(), words, whole: true }).collect()
}

/// Commands of `program` between backticks.
pub fn in_sentence(place: &str, line: &str, program: &[&str]) -> Vec<Shown> {
    let spans = line.split('`').skip(1).step_by(2);
    let commands = spans.flat_map(shell).filter_map(|words| of_program(words, program));
    commands.map(|words| Shown { place: place.to_owned(), words, whole: false }).collect()
}

/// Without a prompt and variables in front; `None` if another program is meant.
fn of_program(words: Vec<String>, program: &[&str]) -> Option<Vec<String>> {
    let in_front = |word: &String| word.ends_with(['$', '#']) || word.split_once('=').is_some();
    let words: Vec<String> = words.into_iter().skip_while(in_front).collect();
    let fits = words.len() > program.len() && words.iter().zip(program).all(|(word, p)| word == p);
    fits.then_some(words)
}

/// Splits a line as a shell does, as far as the docs need it: quotes, `&&`, `||`, `|`, `;`, `&`,
/// redirections, and `#` or two spaces before a remark.
fn shell(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut redirected = false;
    let chars: Vec<char> = line.chars().collect();
    let mut end_word =
        |word: &mut Option<String>, commands: &mut Vec<Vec<String>>, redirect: bool| {
            if let Some(word) = word.take()
                && !std::mem::take(&mut redirected)
                && let Some(command) = commands.last_mut()
            {
                command.push(word);
            }
            redirected |= redirect;
        };
    for (i, &c) in chars.iter().enumerate() {
        let next = chars.get(i + 1);
        match c {
            c if quote == Some(c) => quote = None,
            c if quote.is_some() => word.get_or_insert_default().push(c),
            '\'' | '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            '#' if word.is_none() => break,
            ' ' if next == Some(&' ') => break,
            ' ' => end_word(&mut word, &mut commands, false),
            '>' | '<' => end_word(&mut word, &mut commands, true),
            '&' | '|' | ';' => {
                end_word(&mut word, &mut commands, false);
                commands.push(Vec::new());
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    end_word(&mut word, &mut commands, false);
    commands.retain(|words| !words.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found() {
        let text = "Say `wherry info web` or `wherry`.\n\n\
                    ```\nhost-a$ A=1 wherry run 'a b' --x \"c d\" >f   # wherry no\n\
                    wherry ls && wherry kill web; ls | wc\n\
                    cargo wherry x\nwherry stop web    press it\nwherry run \\\n  web\n```\n";
        let found = in_markdown("f", text, &["wherry"]);
        let lines: Vec<String> = found
            .iter()
            .map(|s| format!("{} {} {}", s.place, s.whole, s.words.join("|")))
            .collect();
        assert_eq!(
            lines,
            [
                "f:1 false wherry|info|web",
                "f:4 true wherry|run|a b|--x|c d",
                "f:5 true wherry|ls",
                "f:5 true wherry|kill|web",
                "f:7 true wherry|stop|web",
                "f:9 true wherry|run|web",
            ]
        );
        assert_eq!(
            in_line("", "cargo xtask lab -- wherry ls", &["cargo", "xtask"])[0].words.len(),
            6
        );
    }
}
