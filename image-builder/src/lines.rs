//! Counting the microkernel's lines of code.
//!
//! A line counts if it bears a token of Rust: blank lines, comments and documentation do not count,
//! nor does anything under `#[cfg(test)]`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What the microkernel may have at most.
pub const LIMIT: usize = 6000;

/// Lines of code of the microkernel: everything that runs in ring 0 except the shared `protocol` types.
pub fn microkernel(root: &Path) -> Result<usize> {
    let mut total = 0;
    for folder in ["microkernel/src", "microkernel/logic/src"] {
        total += folder_lines(&root.join(folder))?;
    }
    Ok(total)
}

/// Lines of code of all Rust files below a folder.
fn folder_lines(folder: &Path) -> Result<usize> {
    let mut files = Vec::new();
    rust_files(folder, &mut files)?;
    let mut counts = Vec::new();
    let mut excluded = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).into_diagnostic().wrap_err_with(|| file.display().to_string())?;
        let counted = count(&text).map_err(|e| miette!("{}: {e}", file.display()))?;
        let folder = module_folder(&file);
        for module in counted.test_modules {
            excluded.insert(folder.join(format!("{module}.rs")));
            excluded.insert(folder.join(module));
        }
        counts.push((file, counted.lines));
    }
    let is_test = |file: &Path| file.ancestors().any(|path| excluded.contains(path));
    Ok(counts.iter().filter(|(file, _)| !is_test(file)).map(|(_, lines)| lines).sum())
}

/// Where the modules declared in a file lie.
fn module_folder(file: &Path) -> PathBuf {
    match file.file_name().and_then(|name| name.to_str()) {
        Some("lib.rs" | "main.rs" | "mod.rs") => file.parent().unwrap_or(Path::new("")).to_path_buf(),
        _ => file.with_extension(""),
    }
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry.into_diagnostic()?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

struct Count {
    lines: usize,
    /// Modules in files of their own that are declared under `#[cfg(test)]`.
    test_modules: Vec<String>,
}

fn count(source: &str) -> Result<Count, proc_macro2::LexError> {
    let tokens: TokenStream = source.parse()?;
    let mut lines = BTreeSet::new();
    let mut test_modules = Vec::new();
    walk(tokens, &mut lines, &mut test_modules);
    Ok(Count { lines: lines.len(), test_modules })
}

fn walk(tokens: TokenStream, lines: &mut BTreeSet<usize>, test_modules: &mut Vec<String>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if is_punct(&token, '#') {
            // An attribute: `#[..]` or `#![..]`.
            let inner = tokens.peek().is_some_and(|next| is_punct(next, '!'));
            let bang = if inner { tokens.next() } else { None };
            let attribute = match tokens.peek() {
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => group.stream().to_string(),
                _ => String::new(),
            };
            let compact: String = attribute.split_whitespace().collect();
            if compact.starts_with("doc=") {
                tokens.next();
                continue;
            }
            if compact == "cfg(test)" && !inner {
                tokens.next();
                skip_item(&mut tokens, test_modules);
                continue;
            }
            mark(&token, lines);
            bang.iter().for_each(|bang| mark(bang, lines));
            continue;
        }
        mark(&token, lines);
        if let TokenTree::Group(group) = token {
            walk(group.stream(), lines, test_modules);
        }
    }
}

/// Skips the item after a `#[cfg(test)]`: up to and with its braces or semicolon.
fn skip_item(tokens: &mut impl Iterator<Item = TokenTree>, test_modules: &mut Vec<String>) {
    let mut after_mod = false;
    let mut module = None;
    for token in tokens {
        match &token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return,
            TokenTree::Ident(name) if after_mod => module = Some(name.to_string()),
            _ if is_punct(&token, ';') => {
                test_modules.extend(module);
                return;
            }
            _ => {}
        }
        after_mod = matches!(&token, TokenTree::Ident(name) if *name == "mod");
    }
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// Marks the lines on which a token stands; of a group only those of its delimiters.
fn mark(token: &TokenTree, lines: &mut BTreeSet<usize>) {
    match token {
        TokenTree::Group(group) => {
            lines.insert(group.span_open().start().line);
            lines.insert(group.span_close().start().line);
        }
        _ => {
            let span = token.span();
            lines.extend(span.start().line..=span.end().line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &str) -> usize {
        count(source).expect("the source is Rust").lines
    }

    #[test]
    fn comments_blank_lines_and_documentation_do_not_count() {
        assert_eq!(lines("//! Doc.\n\n// why\n/// Doc.\nfn f() {\n\n    /* long\n comment */ g();\n}\n"), 3);
        assert_eq!(lines("#![no_std]\n#[inline]\nfn f() {}\n"), 3);
    }

    #[test]
    fn strings_count_as_many_lines_as_they_span() {
        assert_eq!(lines("const A: &str = \"one\ntwo\nthree\";\n"), 3);
    }

    #[test]
    fn tests_do_not_count() {
        let source = "fn f() {}\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\nfn h() {}\n";
        assert_eq!(lines(source), 2);
        let source = "#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;\nfn h() {}\n";
        let counted = count(source).expect("the source is Rust");
        assert_eq!((counted.lines, counted.test_modules), (1, vec!["tests".to_string()]));
        assert_eq!(lines("#[cfg(not(test))]\nfn f() {}\n"), 2, "code of the real kernel");
    }

    #[test]
    fn modules_lie_beside_lib_and_below_others() {
        assert_eq!(module_folder(Path::new("a/lib.rs")), Path::new("a"));
        assert_eq!(module_folder(Path::new("a/b.rs")), Path::new("a/b"));
    }
}
