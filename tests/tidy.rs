//! House rules that neither rustc nor clippy checks. All violations are listed at once, each with
//! its file, its line and the way out.

use std::fmt::Write;
use std::path::{Path, PathBuf};

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

/// Folders that hold no source of ours.
const SKIPPED: &[&str] =
    &[".git", ".hypothesis", ".pytest_cache", ".venv", "__pycache__", "node_modules", "target"];

#[test]
fn the_repository_keeps_its_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = text_files(root);
    assert!(files.len() > 20, "found only {} files below {}", files.len(), root.display());
    let mut complaints = Complaints::default();
    for file in &files {
        check_text(file, &mut complaints);
        if file.path.ends_with(".rs") {
            check_rust(file, &mut complaints);
        }
    }
    check_config_keys(&files, &mut complaints);
    assert!(
        complaints.count == 0,
        "{} violation(s) of the house rules:\n{}",
        complaints.count,
        complaints.list
    );
}

/// One file that is text.
struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

#[derive(Default)]
struct Complaints {
    count: usize,
    list: String,
}

impl Complaints {
    fn add(&mut self, path: &str, line: usize, what: &str) {
        self.count += 1;
        let _ = writeln!(self.list, "  {path}:{line}: {what}");
    }
}

/// All text files of the repository, in order of their paths.
fn text_files(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the repository").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().expect("a file's kind");
            if kind.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
                folders.push(path);
            } else if kind.is_file()
                && name != ".git"
                && let Some(source) = read(root, path)
            {
                found.push(source);
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// `None` for what is not UTF-8, such as weights.
fn read(root: &Path, path: PathBuf) -> Option<Source> {
    let text = String::from_utf8(std::fs::read(&path).ok()?).ok()?;
    let path = path.strip_prefix(root).ok()?.to_str()?.replace('\\', "/");
    Some(Source { path, text })
}

/// Rules for every text file.
fn check_text(file: &Source, complaints: &mut Complaints) {
    // Put together so that this file does not break its own rules.
    let markers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let machine_paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];
    if file.path.ends_with("tokenizer.json") || file.path.ends_with(".lock") {
        return; // generated: words in them mean nothing
    }
    for (number, line) in numbered(&file.text) {
        for marker in markers {
            if words(line).any(|word| word == marker) {
                let what = format!("`{marker}`: do it now, or file an issue and say why it is so");
                complaints.add(&file.path, number, &what);
            }
        }
        for path in machine_paths {
            if names_path(line, path) {
                let what =
                    format!("`{path}` names one machine: use a relative path or an argument");
                complaints.add(&file.path, number, &what);
            }
        }
    }
}

/// Whether `line` has `path` as the start of an absolute path, not inside a longer one.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || "._-}/".contains(before))
    })
}

/// Rules for Rust.
fn check_rust(file: &Source, complaints: &mut Complaints) {
    let path = file.path.as_str();
    if !file.text.starts_with("//!") {
        complaints.add(path, 1, "starts without a `//!` line: say what the file is for");
    }
    let lines = file.text.lines().count();
    if lines >= MAX_FILE_LINES {
        let what = format!(
            "{lines} lines, the limit is {MAX_FILE_LINES}: split the file by responsibility"
        );
        complaints.add(path, lines, &what);
    }
    let code = code_only(&file.text);
    for function in functions(&code) {
        if function.lines > MAX_FUNCTION_LINES {
            let what = format!(
                "`fn {}` has {} lines, the limit is {MAX_FUNCTION_LINES}: name its steps",
                function.name, function.lines
            );
            complaints.add(path, function.line, &what);
        }
    }
    for (number, line) in numbered(&code) {
        for word in words(line) {
            if let Some(what) = refuses(path, word) {
                complaints.add(path, number, what);
            }
        }
        if line.contains("#[ignore") {
            complaints.add(path, number, "an ignored test tests nothing: make it run or delete it");
        }
        for stub in [concat!("to", "do!"), concat!("unimple", "mented!")] {
            if line.contains(stub) {
                complaints.add(path, number, "a stub: write the code or return an error");
            }
        }
    }
}

/// What is wrong with using `word` in the code at `path`.
fn refuses(path: &str, word: &str) -> Option<&'static str> {
    let below = |folder: &str| path.starts_with(folder);
    match word {
        "unsafe" if !path.ends_with("/ffi.rs") => {
            Some("`unsafe` outside ffi.rs: move it into an ffi.rs, with its SAFETY reason")
        }
        "tokio" | "ractor" if below("src/engine/") || below("src/kvxfer/") => {
            Some("engines are synchronous and know no actors: decide here, wait in src/actors")
        }
        "axum" if below("src/") && !below("src/http/") => {
            Some("only src/http knows axum: pass plain types")
        }
        _ => None,
    }
}

/// Every config key named in the docs of `src/config/mod.rs` must be in the README or in docs/.
fn check_config_keys(files: &[Source], complaints: &mut Complaints) {
    const CONFIG: &str = "src/config/mod.rs";
    let Some(config) = files.iter().find(|file| file.path == CONFIG) else { return };
    let docs: Vec<&Source> = files
        .iter()
        .filter(|file| file.path == "README.md" || file.path.starts_with("docs/"))
        .collect();
    if docs.is_empty() {
        return;
    }
    for (number, line) in numbered(&config.text) {
        let Some(doc) = line.trim_start().strip_prefix("/// ") else { continue };
        for key in doc.split('`').skip(1).step_by(2).filter(|code| is_key(code)) {
            let quoted = format!("`{key}`");
            if !docs.iter().any(|file| file.text.contains(&quoted)) {
                let what = format!("key {quoted} is not in README.md or docs/: document it there");
                complaints.add(CONFIG, number, &what);
            }
        }
    }
}

fn is_key(code: &str) -> bool {
    const SECTIONS: &[&str] = &["node", "log", "frontend", "worker", "supervision", "faults"];
    code.split_once('.').is_some_and(|(section, rest)| {
        SECTIONS.contains(&section)
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.')
    })
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The code with comments and the insides of strings and characters blanked; lines stay in place.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at + 1..].first() == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes[at + 1..].first() == Some(&b'*') => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !follows_word(bytes, at) => raw_string_end(bytes, at).unwrap_or(at + 1),
            b'\'' => char_end(bytes, at),
            _ => at + 1,
        };
        if end > at + 1 {
            for byte in &mut code[at..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
        at = end;
    }
    String::from_utf8(code).expect("blanking leaves whole characters")
}

/// Whether the byte before belongs to an identifier; a `b` alone is a prefix of a literal.
fn follows_word(bytes: &[u8], at: usize) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match at.checked_sub(1).map(|before| bytes[before]) {
        Some(b'b' | b'c') => at >= 2 && is_word(bytes[at - 2]),
        Some(before) => is_word(before),
        None => false,
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |length| at + length)
}

/// Comments nest.
fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut end) = (0, at);
    while end < bytes.len() {
        if bytes[end..].starts_with(b"/*") {
            (depth, end) = (depth + 1, end + 2);
        } else if bytes[end..].starts_with(b"*/") {
            (depth, end) = (depth - 1, end + 2);
            if depth == 0 {
                return end;
            }
        } else {
            end += 1;
        }
    }
    end
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    bytes.len().min(end + 1)
}

/// `None` if the `r` at `at` does not open a raw string.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|&&b| b == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let length = bytes[open + 1..].windows(close.len()).position(|window| window == close)?;
    Some(open + 1 + length + close.len())
}

/// The end of a character; a lifetime is one byte long, its name is then an ordinary word.
fn char_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let closing = bytes[at + 3..].iter().position(|&b| b == b'\'');
        return closing.map_or(bytes.len(), |length| at + 3 + length + 1);
    }
    let first = bytes.get(at + 1).copied().unwrap_or(b' ');
    let width = match first {
        0..=0x7f => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    if bytes.get(at + 1 + width) == Some(&b'\'') { at + width + 2 } else { at + 1 }
}

struct Function<'a> {
    name: &'a str,
    line: usize,
    lines: usize,
}

/// The functions with a body in code without comments and strings.
fn functions(code: &str) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let name = words(&code[at + 3..]).next().unwrap_or("");
        if !is_word || !code[at + 3..].trim_start().starts_with(name) || name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(&code[at..]) {
            let lines = code[at..at + end].lines().count();
            found.push(Function { name, line: code[..at].matches('\n').count() + 1, lines });
        }
    }
    found
}

/// Where the function that starts here ends; `None` for one without a body.
fn body_end(code: &str) -> Option<usize> {
    let (mut brackets, mut braces) = (0, 0);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn comments_strings_and_characters_are_not_code() {
    let text = "let a = \"unsafe { \\\" }\"; // unsafe\nlet b = '{'; /* a /* { */ */ let c: &'x str;\n\
                let d = br#\"fn \" {\"#; let e = '\\''; let f = 'ü';";
    let code = code_only(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(
        words(&code).collect::<Vec<_>>(),
        ["let", "a", "let", "b", "let", "c", "x", "str", "let", "d", "b", "let", "e", "let", "f"]
    );
    assert!(!code.contains('{'), "{code}");
}

#[test]
fn a_function_is_as_long_as_its_body() {
    let code = "trait T { fn none(&self) -> [u8; 4]; }\nconst fn one() {}\nfn three(\n  f: fn (u8) -> u8) \
                {\n  if true { loop {} } }\n";
    let lengths: Vec<_> = functions(code).iter().map(|f| (f.name, f.line, f.lines)).collect();
    assert_eq!(lengths, [("one", 2, 1), ("three", 3, 3)]);
}

#[test]
fn machine_paths_are_told_from_longer_ones() {
    let path = concat!("/ro", "ot/");
    assert!(names_path(&format!("cd {path}x"), path));
    assert!(names_path(&format!("\"{path}x\""), path));
    assert!(!names_path(&format!("a/chroot{path}x"), path));
    assert!(!names_path(&format!("${{dir}}{path}x"), path));
}
