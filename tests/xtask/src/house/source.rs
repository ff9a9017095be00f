//! One source file, read by its tokens: which modules it has, which paths it names, and how many
//! of its lines are code and comments. Test code is left out of all of it.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};

/// What a file says outside test code.
#[derive(Debug, Default)]
pub struct Source {
    /// `mod name;`, with the module inside the file that it stands in.
    pub modules: Vec<Declared>,
    /// What `use` brings into a module of the file.
    pub imports: Vec<Import>,
    /// Paths of two words or more, and the module of the file that they stand in.
    pub paths: Vec<(Module, Vec<String>)>,
    /// Modules that have their body in this file.
    pub inline: Vec<Module>,
    /// All words but those of `use` and `mod`.
    pub words: BTreeSet<String>,
    /// Lines with a token on them.
    pub code: usize,
    /// Other lines that are not empty, and doc comments.
    pub comments: usize,
    /// Functions and their number of lines.
    pub functions: Vec<(String, usize)>,
    /// The whole file is test code (`#![cfg(test)]`).
    pub is_test: bool,
}

/// Names of nested inline modules; empty at the top of a file.
pub type Module = Vec<String>;

/// `mod name;`
#[derive(Debug)]
pub struct Declared {
    /// Where it stands.
    pub within: Module,
    /// Its name.
    pub name: String,
    /// `#[path = "…"]`.
    pub path: Option<String>,
}

/// One leaf of a `use`.
#[derive(Debug)]
pub struct Import {
    /// Where it stands.
    pub within: Module,
    /// The whole path; without the star of a glob.
    pub path: Vec<String>,
    /// The name it is known by here; none for a glob.
    pub name: Option<String>,
    /// It is made known to others (`pub use`), which alone is no use of it.
    pub is_public: bool,
}

/// Words that begin an item or a statement, which commas do not end.
const ITEMS: [&str; 16] = [
    "async",
    "const",
    "enum",
    "extern",
    "fn",
    "impl",
    "let",
    "macro_rules",
    "mod",
    "static",
    "struct",
    "trait",
    "type",
    "union",
    "unsafe",
    "use",
];
/// Those of them that a `;` ends even after braces.
const TO_SEMICOLON: [&str; 5] = ["const", "let", "static", "type", "use"];

struct Reader<'a> {
    lines: Vec<&'a str>,
    code: BTreeSet<usize>,
    docs: BTreeSet<usize>,
    test: BTreeSet<usize>,
    found: Source,
}

/// Reads the text of a file.
pub fn read(text: &str) -> Result<Source> {
    let tokens: TokenStream =
        text.parse().map_err(|error| anyhow!("not the text of a Rust file: {error}"))?;
    let mut reader = Reader {
        lines: text.lines().collect(),
        code: BTreeSet::new(),
        docs: BTreeSet::new(),
        test: BTreeSet::new(),
        found: Source::default(),
    };
    reader.items(tokens, &[]);
    let Reader { lines, code, docs, test, mut found } = reader;
    for (index, _) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match index + 1 {
            number if test.contains(&number) => {}
            number if code.contains(&number) && !docs.contains(&number) => found.code += 1,
            _ => found.comments += 1,
        }
    }
    proc_macro2::extra::invalidate_current_thread_spans();
    Ok(found)
}

impl Reader<'_> {
    /// Walks through the tokens of one level, and of those below.
    fn items(&mut self, tokens: TokenStream, within: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let (mut at, mut path_attribute) = (0, None);
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    let inner = is_punct(tokens.get(at + 1), '!');
                    let body = tokens.get(at + 1 + usize::from(inner));
                    let Some(TokenTree::Group(body)) = body else {
                        self.mark(token.span());
                        at += 1;
                        continue;
                    };
                    let doc = self.is_comment(token.span());
                    if doc {
                        self.docs.extend(range(body.span()));
                    } else {
                        self.mark(token.span());
                        self.mark(body.span());
                    }
                    let after = at + 2 + usize::from(inner);
                    at = match is_for_tests(body) {
                        true if inner => {
                            self.found.is_test = true;
                            tokens.len()
                        }
                        true => self.skip(&tokens, at, after),
                        false => after,
                    };
                    path_attribute = path_of(body).or(path_attribute);
                }
                TokenTree::Ident(word) if word == "mod" => {
                    self.mark(token.span());
                    at = self.module(&tokens, at, within, path_attribute.take());
                }
                TokenTree::Ident(word) if word == "use" => at = self.import(&tokens, at, within),
                TokenTree::Ident(word) => {
                    if word == "fn" {
                        self.function(&tokens, at);
                    }
                    at = self.path(&tokens, at, within);
                }
                TokenTree::Group(group) => {
                    self.mark(group.span_open());
                    self.mark(group.span_close());
                    self.items(group.stream(), within);
                    at += 1;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.mark(token.span());
                    at += 1;
                }
            }
        }
    }

    fn mark(&mut self, span: Span) {
        self.code.extend(range(span));
    }

    /// Whether the token is a doc comment, which the parser turns into an attribute.
    fn is_comment(&self, span: Span) -> bool {
        let start = span.start();
        let line = self.lines.get(start.line - 1).copied().unwrap_or_default();
        line.chars().nth(start.column) == Some('/')
    }

    /// Leaves out the item after the attributes `from..at`; gives where the next one begins.
    fn skip(&mut self, tokens: &[TokenTree], from: usize, mut at: usize) -> usize {
        let mut word = None;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Ident(ident) if word.is_none() => {
                    word = ITEMS.into_iter().find(|item| ident == item);
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => break,
                TokenTree::Punct(punct) if punct.as_char() == ',' && word.is_none() => break,
                TokenTree::Group(group)
                    if group.delimiter() == Delimiter::Brace
                        && !word.is_some_and(|word| TO_SEMICOLON.contains(&word)) =>
                {
                    break;
                }
                _ => {}
            }
        }
        let last = tokens.get(at - 1).map_or(0, |token| token.span().end().line);
        self.test.extend(tokens[from].span().start().line..=last);
        at
    }

    fn module(
        &mut self,
        tokens: &[TokenTree],
        at: usize,
        within: &[String],
        path: Option<String>,
    ) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(at + 1) else { return at + 1 };
        self.mark(name.span());
        let name = name.to_string();
        match tokens.get(at + 2) {
            Some(TokenTree::Group(body)) => {
                self.mark(body.span_open());
                self.mark(body.span_close());
                let inner: Module = within.iter().cloned().chain([name]).collect();
                self.found.inline.push(inner.clone());
                self.items(body.stream(), &inner);
            }
            _ => self.found.modules.push(Declared { within: within.to_vec(), name, path }),
        }
        at + 3
    }

    fn import(&mut self, tokens: &[TokenTree], at: usize, within: &[String]) -> usize {
        let end = (at..tokens.len()).find(|n| is_punct(tokens.get(*n), ';')).unwrap_or(at);
        tokens[at..=end].iter().for_each(|token| self.mark(token.span()));
        let mut leaves = Vec::new();
        tree(&tokens[at + 1..end.max(at + 1)], &[], &mut leaves);
        let is_public = match at.checked_sub(1).map(|before| &tokens[before]) {
            Some(TokenTree::Ident(word)) => word == "pub",
            Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Parenthesis,
            _ => false,
        };
        let within = within.to_vec();
        self.found.imports.extend(leaves.into_iter().map(|(path, name)| Import {
            within: within.clone(),
            path,
            name,
            is_public,
        }));
        end + 1
    }

    fn function(&mut self, tokens: &[TokenTree], at: usize) {
        let Some(TokenTree::Ident(name)) = tokens.get(at + 1) else { return };
        for token in &tokens[at..] {
            match token {
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    let lines = body.span_close().end().line - tokens[at].span().start().line + 1;
                    self.found.functions.push((name.to_string(), lines));
                    return;
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => return,
                _ => {}
            }
        }
    }

    /// A path that begins at `at`, of one word or more; gives what comes after it.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize, within: &[String]) -> usize {
        let mut path = Vec::new();
        while let Some(TokenTree::Ident(word)) = tokens.get(at) {
            self.mark(word.span());
            path.push(plain(word));
            self.found.words.insert(plain(word));
            if !is_double_colon(tokens, at + 1) {
                at += 1;
                break;
            }
            at += 3;
        }
        if path.len() > 1 {
            self.found.paths.push((within.to_vec(), path));
        }
        at
    }
}

/// All leaves of a tree of `use`: their paths, and the names that they are known by.
fn tree(tokens: &[TokenTree], before: &[String], leaves: &mut Vec<(Vec<String>, Option<String>)>) {
    let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ',');
    for branch in tokens.split(comma) {
        let mut path = before.to_vec();
        let (mut name, mut renamed, mut open) = (None, false, false);
        for token in branch {
            match token {
                TokenTree::Ident(word) if word == "as" => renamed = true,
                TokenTree::Ident(word) if renamed => name = Some(plain(word)),
                TokenTree::Ident(word) => path.push(plain(word)),
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    leaves.push((path.clone(), None));
                    open = true;
                }
                TokenTree::Group(group) => {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    tree(&inner, &path, leaves);
                    open = true;
                }
                _ => {}
            }
        }
        if open || branch.is_empty() {
            continue;
        }
        // `use a::{self}` is `a`.
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = name.or_else(|| path.last().cloned());
        leaves.push((path, name));
    }
}

fn plain(word: &Ident) -> String {
    word.to_string().trim_start_matches("r#").to_owned()
}

fn is_punct(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

fn is_double_colon(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':')
        && is_punct(tokens.get(at + 1), ':')
        && matches!(tokens.get(at + 2), Some(TokenTree::Ident(_)))
}

fn range(span: Span) -> std::ops::RangeInclusive<usize> {
    span.start().line..=span.end().line
}

/// Whether an attribute is `cfg` with `test` in it, but not `not(test)`.
fn is_for_tests(body: &Group) -> bool {
    let words: String = body.stream().to_string().chars().filter(|c| !c.is_whitespace()).collect();
    words == "test"
        || words.starts_with("cfg(")
            && !words.contains("not(test")
            && words
                .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '"')
                .any(|word| word == "test")
}

fn path_of(body: &Group) -> Option<String> {
    let text = body.stream().to_string();
    let value = text.strip_prefix("path")?.trim_start().strip_prefix('=')?;
    Some(value.trim().trim_matches('"').to_owned())
}
